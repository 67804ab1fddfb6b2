"""The relay is exact in what it carries and in the time it reserves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.thinlink import Pacer, thin_link


def receive_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


@pytest.fixture
def echo_server() -> Iterator[str]:
    """Answers each connection with all that it received, after the peer's end of stream."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(receive_all(peer))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def ask(url: str, message: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(message)
        peer.shutdown(socket.SHUT_WR)
        return receive_all(peer)


def test_carries_bytes_unchanged_and_counts_both_directions(echo_server: str) -> None:
    message = bytes(range(256)) * 1024
    with thin_link(echo_server, bits_per_s=1e9) as link:
        assert link.url != echo_server
        assert ask(link.url, message) == message
        assert link.to_server.bytes_sent == len(message)
        assert link.to_client.bytes_sent == len(message)


def test_a_server_that_is_gone_closes_the_connection() -> None:
    with thin_link("http://127.0.0.1:9", bits_per_s=1e9) as link:
        assert ask(link.url, b"") == b""


def test_a_url_without_port_is_refused() -> None:
    with pytest.raises(ValueError, match="host and port"), thin_link("http://storage", 1e6):
        pass


def test_pacer_lays_pieces_end_to_end() -> None:
    pacer = Pacer(bits_per_s=8000.0)
    assert pacer.reserve(1000, now=10.0) == pytest.approx(1.0)
    assert pacer.reserve(500, now=10.0) == pytest.approx(1.5)
    assert pacer.reserve(1000, now=20.0) == pytest.approx(1.0), "an idle link saves nothing up"
    assert pacer.bytes_sent == 2500
