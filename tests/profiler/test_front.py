"""`hapi.profile`: one machine as both tiers, and two tiers over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch
from example_images import SIDE, network, transform, write_folder
from fake_storage import TOKEN, FakeStorage, broken, problem

import hapi
import profiler.front
import profiler.tiers
from hapi.backoff import RetryPolicy
from hapi.errors import (
    ForbiddenError,
    InputError,
    ServerUnreachableError,
    ServiceError,
    TransformError,
    TruncatedStreamError,
    UnauthorizedError,
    WireError,
)
from hapi.machine import machine_name
from hapi.model import Graph, capture
from hapi.wire.protocol import ARROW_STREAM
from profiler import plan, profile
from profiler.remote import ServerClient

ONCE = RetryPolicy(patience_seconds=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(network(), torch.randn(2, 3, SIDE, SIDE), name="toy")


def test_it_is_the_front_door() -> None:
    assert hapi.profile is profile


def test_this_machine_as_both_tiers(graph: Graph, folder: Path) -> None:
    found = profile(graph, folder, transform=transform(), batch_size=4, epochs=3, bandwidth=1e8, latency=0.01)
    assert [cut.name for cut in found.cuts] == [cut.name for cut in graph.cuts]
    assert found.input_bytes == pytest.approx(sum(p.stat().st_size for p in folder.rglob("*.jpg")) / 10)
    assert (found.samples, found.batch_size, found.epochs) == (10, 4, 3)
    assert (found.link.bandwidth_bits_per_s, found.link.latency_seconds) == (1e8, 0.01)
    assert all(cut.server_seconds > 0 for cut in found.cuts)
    assert all(cut.client_seconds > 0 for cut in found.cuts)  # after the last one the head is trained there
    assert plan(found).predicted_seconds > 0


def test_without_data_nothing_is_read(graph: Graph) -> None:
    found = profile(graph, samples=7)
    assert found.link is None
    assert found.samples == 7
    assert found.input_bytes == 3 * SIDE * SIDE * 4
    assert found.cuts[0].server_seconds == 0


def test_a_module_needs_an_example(folder: Path) -> None:
    found = profile(network(), example=torch.randn(2, 3, SIDE, SIDE))
    assert found.cuts[-1].out_bytes == 8 * 4
    with pytest.raises(InputError, match="example="):
        profile(network())


def test_data_needs_a_transform_that_is_portable(graph: Graph, folder: Path) -> None:
    with pytest.raises(InputError, match="transform="):
        profile(graph, folder)
    with pytest.raises(TransformError):
        profile(graph, folder, transform=lambda image: image)


@pytest.fixture
def storage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeStorage:
    fake = FakeStorage(folder, tmp_path)

    def client(url: str, token: str | None) -> ServerClient:
        return ServerClient(url, token, transport=fake.transport)

    monkeypatch.setattr(profiler.front, "ServerClient", client)
    return fake


def test_two_tiers(graph: Graph, storage: FakeStorage) -> None:
    settings = {"transform": transform(), "server": "http://storage:1", "token": TOKEN, "batch_size": 4}
    found = profile(graph, storage.manifest.uri, **settings)
    assert found.server_memory_bytes == 10**9
    assert found.samples == 10
    assert found.link.bandwidth_bits_per_s > 0
    assert found.details["measured_on_server"] is True
    assert storage.asked.count("PUT models") == 1
    again = profile(graph, storage.manifest.uri, bandwidth=5e6, **settings)
    assert storage.asked.count("PUT models") == 1  # it has the model now
    assert again.link.bandwidth_bits_per_s == 5e6
    with pytest.raises(InputError, match="data="):
        profile(graph, **settings)


def test_a_server_is_told_the_whole_path_of_a_relative_one(
    graph: Graph, storage: FakeStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile(graph, "photos", transform=transform(), server="http://storage:1", token=TOKEN)
    assert storage.named == [(tmp_path / "photos").as_uri()]


def test_tiers_of_one_machine_are_measured_in_turn(
    graph: Graph, storage: FakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"transform": transform(), "server": "http://storage:1", "token": TOKEN}
    monkeypatch.setattr(profiler.tiers, "ThreadPoolExecutor", None)
    with pytest.raises(TypeError):
        profile(graph, storage.manifest.uri, **settings)
    storage.machine = machine_name()
    assert profile(graph, storage.manifest.uri, **settings).details["measured_on_server"]


def test_a_wrong_token_is_said(graph: Graph, storage: FakeStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnauthorizedError, match="no such token"):
        profile(graph, "s3://x", transform=transform(), server="http://storage:1", token="wrong")
    monkeypatch.setenv("HAPI_TOKEN", TOKEN)
    assert ServerClient("http://storage:1", transport=storage.transport).status().budget_bytes == 10**9


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("transport", "error", "message"),
    [
        (httpx.MockTransport(refuse), ServerUnreachableError, "no storage server answers at http://x"),
        (broken(200), WireError, "not JSON"),
        (broken(200, b'{"hello": 1}', "application/json"), WireError, "not that of a HAPI storage server"),
        (broken(500), ServiceError, "answered 500"),
        (broken(403), ForbiddenError, "token"),
        (broken(302), ServiceError, "answered 302"),
        (problem("access-denied", "bucket is closed", 403), hapi.HapiError, "bucket is closed"),
    ],
)
def test_what_is_no_storage_server(transport: httpx.MockTransport, error: type[Exception], message: str) -> None:
    with ServerClient("http://x", retry=ONCE, transport=transport) as client, pytest.raises(error, match=message):
        client.status()


def test_streams_that_fail() -> None:
    failures = ((httpx.MockTransport(refuse), ServerUnreachableError), (broken(500), ServiceError))
    for transport, error in failures:
        with ServerClient("http://x", transport=transport) as client, pytest.raises(error):
            list(client.link(5))
    nothing = broken(200, b"", ARROW_STREAM)
    with ServerClient("http://x", retry=ONCE, transport=nothing) as client, pytest.raises(TruncatedStreamError):
        client.objects("0" * 64, [1])
