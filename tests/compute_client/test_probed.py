"""Looking at the link while a job runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from compute_client.decision import LEAST_PROBE_BYTES, PROBE_SECONDS, PROBE_STREAMS, probed
from hapi.cancel import Cancel
from hapi.errors import BusyError
from profiler.link import FIRST_BYTES, HEADROOM
from profiler.remote import ServerClient, Timeouts


class Server:
    """Answers at once, or says that others are looking."""

    def __init__(self, *, is_busy: bool = False) -> None:
        self.asked: list[int] = []
        self._is_busy = is_busy

    def link(self, count: int, *, cancel: Cancel) -> Iterator[bytes]:
        cancel.check()
        if self._is_busy:
            raise BusyError("others are looking.", 0.0)
        self.asked.append(count)
        yield bytes(count)


@pytest.mark.parametrize(
    ("bits_per_s", "most"),
    [(1e3, LEAST_PROBE_BYTES), (161e3, HEADROOM * 161e3 * PROBE_SECONDS / 8), (1e10, FIRST_BYTES)],
)
def test_a_look_begins_with_what_the_link_is_known_to_carry_meanwhile(bits_per_s: float, most: float) -> None:
    server = Server()
    assert probed(server, 0.0, bits_per_s, Cancel()) is not None  # type: ignore[arg-type]
    latency, *transfers = server.asked
    assert latency == 1
    assert 0 < sum(transfers[:PROBE_STREAMS]) <= most + PROBE_STREAMS


def test_what_cannot_be_looked_at_is_not_known() -> None:
    assert probed(Server(is_busy=True), 0.0, 1e6, Cancel()) is None  # type: ignore[arg-type]


def test_no_look_begins_after_the_job() -> None:
    ended = Cancel()
    ended.set()
    server = Server()
    assert probed(server, 0.0, 1e6, ended) is None  # type: ignore[arg-type]
    assert not server.asked


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n0"])
def test_a_look_ends_with_the_job(begun: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Of a server that does not answer, or stops in its answer: closing wakes the reader, without a word."""
    caplog.set_level("INFO", "compute_client")
    cancel = Cancel()
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with ServerClient(url, timeouts=Timeouts(read=60)) as client:
            found = pool.submit(probed, client, 0.0, 1e6, cancel)
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(10)
                connection.sendall(begun)
                cancel.set()
                assert found.result(20) is None
    assert not caplog.messages
