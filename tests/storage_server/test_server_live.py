"""The server on a real socket: streams, callers that leave, a full house, an end in good order."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gated_store import GatedStore
from live_server import LiveServer

from hapi.cancel import Cancel
from hapi.data import open_store
from hapi.errors import TruncatedStreamError
from hapi.wire import StreamDecoder, read_stream
from storage_server.http import middleware
from storage_server.http.app import app_of
from storage_server.http.server import listen
from storage_server.library.models import Upload
from storage_server.service import Service

MakeService = Callable[..., Service]


class Watched:
    """A service over big objects behind a gate; it notes when an answer has really ended."""

    def __init__(self, service: Service, folder: Path, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = service
        self.store = GatedStore(open_store(folder), free)
        self.ended = threading.Semaphore(0)
        self.cancels: list[Cancel] = []
        monkeypatch.setattr(service.datasets, "store", lambda manifest: self.store)
        extract = service.extract

        def noted(request: object, tenant: object, cancel: Cancel) -> Iterator[bytes]:
            self.cancels.append(cancel)
            try:
                yield from extract(request, tenant, cancel)  # type: ignore[arg-type]
            finally:
                self.ended.release()

        monkeypatch.setattr(service, "extract", noted)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """40 objects of one megabyte, which nobody can decode (nor needs to, at cut `input`)."""
    folder = tmp_path / "big"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(bytes([number]) * 1_000_000)
    return folder


def registered(client: httpx.Client, folder: Path) -> dict[str, object]:
    """An extract request for all objects as they are stored."""
    digest = client.post("/v1/datasets", json={"uri": str(folder)}).raise_for_status().json()["digest"]
    return {"dataset": digest, "indices": list(range(40)), "cut": "input"}


def sent_bytes(service: Service) -> float:
    return service.metrics.registry.get_sample_value("hapi_sent_bytes_total") or 0.0


def http(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60)


def test_forty_megabytes_arrive_whole(make_service: MakeService, big: Path) -> None:
    with LiveServer(make_service(roots=(str(big),))) as url, http(url) as client:
        with client.stream("POST", "/v1/extract", json=registered(client, big)) as response:
            batches = list(read_stream(response.iter_bytes()))
        rows = {int(i): data for batch in batches for i, data in zip(batch.indices, batch.objects or [], strict=True)}
    assert {index: (data[0], len(data)) for index, data in rows.items()} == {n: (n, 1_000_000) for n in range(40)}


def test_a_caller_that_hangs_up_stops_the_reading(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), read_threads=2)
    watched = Watched(service, big, free=3, monkeypatch=monkeypatch)
    with LiveServer(service) as url:
        with http(url) as client, client.stream("POST", "/v1/extract", json=registered(client, big)) as response:
            assert next(response.iter_raw())  # the answer has begun; its next objects hang in the store
        assert watched.ended.acquire(timeout=60), "the caller hung up, and its answer did not end"
        assert watched.cancels[0].is_set
        watched.store.open_gate()
    assert len(watched.store.begun) <= 5, "three that passed, and two that hung in the store"
    outcome = service.metrics.registry.get_sample_value("hapi_extracts_total", {"outcome": "cancelled"})
    assert outcome == 1
    assert service.queue.used_bytes == 0


def test_a_caller_that_hangs_up_before_its_answer_begins_is_noticed_too(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), read_threads=2)
    watched = Watched(service, big, free=0, monkeypatch=monkeypatch)
    with LiveServer(service) as url, http(url) as client:
        body = registered(client, big)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/extract", json=body, timeout=httpx.Timeout(60, read=0.05))
        assert watched.ended.acquire(timeout=60)
        watched.store.open_gate()
    assert len(watched.store.begun) <= 2


def test_a_full_server_says_so_at_once_and_serves_those_it_took(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), max_requests=1, max_waiting=0, read_threads=1)
    watched = Watched(service, big, free=1, monkeypatch=monkeypatch)
    with LiveServer(service) as url, http(url) as client:
        body = registered(client, big)
        with client.stream("POST", "/v1/extract", json=body) as first:
            decoder = StreamDecoder()
            chunks = first.iter_raw()
            batches = list(decoder.feed(next(chunks)))
            second = httpx.post(f"{url}/v1/extract", json=body, timeout=60)
            assert second.status_code == 429
            assert int(second.headers["retry-after"]) >= 1
            assert second.json()["type"] == "busy"
            assert client.get("/healthz").status_code == 200, "the event loop is never busy with it"
            watched.store.open_gate()
            for chunk in chunks:
                batches += decoder.feed(chunk)
            decoder.finish()
        assert sum(map(len, batches)) == 40
        assert httpx.post(f"{url}/v1/extract", json=body, timeout=60).status_code == 200


def test_a_request_that_waits_gets_its_turn(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), max_requests=1, max_waiting=4, read_threads=1)
    watched = Watched(service, big, free=0, monkeypatch=monkeypatch)
    with LiveServer(service) as url, http(url) as client:
        body = {**registered(client, big), "indices": [1, 2]}
        answers: list[int] = []

        def ask() -> None:
            answers.append(len(httpx.post(f"{url}/v1/extract", json=body, timeout=60).content))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert watched.store.waiting.acquire(timeout=60)
        watched.store.open_gate()
        for thread in threads:
            thread.join(60)
    assert all(size > 2_000_000 for size in answers)
    assert len(answers) == 3


def test_the_end_waits_for_answers_that_are_on_their_way(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), read_threads=1, grace_seconds=60)
    watched = Watched(service, big, free=1, monkeypatch=monkeypatch)
    server = LiveServer(service)
    with server as url, http(url) as client:
        body = registered(client, big)
        with client.stream("POST", "/v1/extract", json=body) as response:
            chunks = response.iter_raw()
            first = next(chunks)
            server.stop()
            refused = httpx.get(f"{url}/readyz", timeout=60)
            while refused.status_code == 200:  # the signal is handled by the event loop, in a moment
                refused = httpx.get(f"{url}/readyz", timeout=60)
            assert refused.status_code == 503
            assert httpx.post(f"{url}/v1/extract", json=body, timeout=60).status_code == 503
            watched.store.open_gate()
            batches = list(read_stream([first, *chunks]))
        assert sum(map(len, batches)) == 40
    server.join()


def test_after_the_grace_time_a_stream_ends_without_its_marker(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), read_threads=1, grace_seconds=0)
    watched = Watched(service, big, free=2, monkeypatch=monkeypatch)
    server = LiveServer(service)
    with server as url, http(url) as client:
        with client.stream("POST", "/v1/extract", json=registered(client, big)) as response:
            chunks = response.iter_raw()
            received = [next(chunks)]
            server.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(chunks)
        watched.store.open_gate()
    server.join()
    batches, stream = [], read_stream(received)
    with pytest.raises(TruncatedStreamError):
        batches.extend(stream)
    assert batches or received


def test_a_caller_that_does_not_read_does_not_keep_the_server_from_ending(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(roots=(str(big),), read_threads=1, grace_seconds=0)
    watched = Watched(service, big, free=40, monkeypatch=monkeypatch)
    server = LiveServer(service)
    with server as url, http(url) as client:
        body = json.dumps(registered(client, big)).encode()
        head = f"POST /v1/extract HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            before = -1.0
            while (sent := sent_bytes(service)) != before or not sent:  # until nothing more goes
                before = sent
                threading.Event().wait(0.2)
            assert sent < 40_000_000
            server.stop()
            assert watched.ended.acquire(timeout=20), "its turn was not taken away"
    server.join()


def test_trouble_half_way_ends_the_stream_and_the_next_request_is_told_why(
    make_service: MakeService, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hapi.errors import StoreUnavailableError

    service = make_service(roots=(str(big),), read_threads=1)

    def down(key: str) -> None:
        if key >= "20":
            raise StoreUnavailableError(f"{key}: the store did not answer.")

    store = GatedStore(open_store(big), on_read=down)
    monkeypatch.setattr(service.datasets, "store", lambda manifest: store)
    with LiveServer(service) as url, http(url) as client:
        body = registered(client, big)
        received: list[int] = []
        with client.stream("POST", "/v1/extract", json=body) as response:
            assert response.status_code == 200
            batches = read_stream(response.iter_raw())
            with pytest.raises(httpx.RemoteProtocolError):
                received.extend(int(index) for batch in batches for index in batch.indices)
        missing = [index for index in range(40) if index not in received]
        again = client.post("/v1/extract", json={**body, "indices": missing[-5:]})
        assert again.status_code == 503
        assert again.json()["type"] == "store-unavailable"
        assert int(again.headers["retry-after"]) >= 1


def test_an_upload_that_breaks_off_leaves_nothing(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, begun, closed = make_service(), threading.Event(), threading.Event()
    begin, close = Upload.__init__, Upload.close
    monkeypatch.setattr(Upload, "__init__", lambda *args: (begin(*args), begun.set())[0])
    monkeypatch.setattr(Upload, "close", lambda upload: (close(upload), closed.set())[0])
    with LiveServer(service) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"PUT /v1/models/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + b"half of it")
            assert begun.wait(60)
        assert closed.wait(60)
    assert list(service.models.archives.folder.iterdir()) == []
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_probe_of_the_link_is_bounded(make_service: MakeService) -> None:
    with LiveServer(make_service()) as url, http(url) as client:
        assert len(client.get("/v1/link?bytes=5000000").content) == 5_000_000
        with client.stream("GET", "/v1/link?bytes=200000000") as response:
            assert next(response.iter_raw())
        assert client.get("/v1/link?bytes=10").status_code == 200


def test_probes_that_begin_together_are_answered_or_refused_not_broken_off(service: Service) -> None:
    app = app_of(service)
    statuses: list[int] = []

    async def probe(all_began: asyncio.Event) -> None:
        sent = 0

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                if len(statuses) == 6:
                    all_began.set()
                if message["status"] == 200:
                    await all_began.wait()

        scope = {"type": "http", "method": "GET", "path": "/v1/link", "query_string": b"bytes=10", "headers": []}
        await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send)
        assert sent

    async def probes() -> None:
        all_began = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(probe(all_began))

    try:
        asyncio.run(probes())
    finally:
        app.state.shell.close()
    assert sorted(statuses) == [200] * 4 + [429] * 2


def test_connections_are_asked_whether_their_other_end_is_there() -> None:
    """A machine that loses its power says no word."""
    with listen("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        connection, _ = sock.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@pytest.mark.parametrize("head", [f"PUT /v1/models/{'0' * 64}", "POST /v1/datasets"])
def test_a_caller_that_stops_in_the_middle_of_a_body_is_not_waited_for(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """Four such uploads were all that anybody could send to this server, for ever."""
    monkeypatch.setattr(middleware, "STALL_SECONDS", 0.05)
    with LiveServer(make_service()) as url:
        port = int(url.rpartition(":")[2])
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf of it".encode())
                answer = b""
                while b"}" not in answer:
                    more = connection.recv(65536)
                    assert more
                    answer += more
                assert b" 429 " in answer
                assert b"nothing came of the request's body for 0.05 s" in answer
