"""A server on a real GPU: what it gives is what the network gives, whatever runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from awkward_models import Archive, make_archive
from fastapi.testclient import TestClient
from test_server_precision import features
from test_server_routes import upload
from torch import nn

from hapi.data import TransformSpec, open_store
from hapi.data.transfer import put_pictures
from hapi.engine import Compiler, Shelf
from hapi.machine import free_bytes
from hapi.settings import StoreSettings
from storage_server.http.app import app_of
from storage_server.memory.budget import MemoryBudget
from storage_server.service import Service
from storage_server.settings import ServerSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SAMPLES, CHANNELS = 48, 16384
ROOM = 100 * 2**20
"""For tensors on the GPU: a sample takes 32 MiB of them."""


class Hungry(nn.Module):
    """Two activations of 16 MiB per sample for a result of 64 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, CHANNELS, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.wide(image)).mean(dim=(2, 3))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    put_pictures(open_store(folder), SAMPLES, classes=2, seed=0, workers=2)
    return folder


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(Hungry(), tmp_path_factory.mktemp("hungry") / "hungry.hapi")


@pytest.fixture
def unsuspecting(pictures: Path, tmp_path: Path) -> Iterator[Service]:
    """A server that believes that the GPU has endless memory."""
    settings = ServerSettings.load(
        roots=(str(pictures),), cache_dir=tmp_path, device="cuda", engine="eager", workers=2, feature_cache_bytes=0
    )
    budget = MemoryBudget("cuda", None, settings.queue_limit, free=lambda device: 2**40)
    service = Service(settings, StoreSettings(), budget=budget)
    yield service
    service.close()
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_memory_that_runs_out_costs_the_client_nothing_but_time(
    unsuspecting: Service, hungry: Archive, transform: TransformSpec
) -> None:
    with TestClient(app_of(unsuspecting), raise_server_exceptions=False) as client:
        assert upload(client, hungry).status_code == 201
        dataset = client.post("/v1/datasets", json={"uri": unsuspecting.roots.uris[0]}).json()["digest"]
        body = {"dataset": dataset, "model": hungry.digest, "transform": transform.to_json()}
        expected = features(client, {**body, "indices": [0, 1]})
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / total)
        found = features(client, {**body, "indices": list(range(SAMPLES))})
        assert len(found) == SAMPLES
        torch.testing.assert_close(found[:2], expected)
        (prefix,) = client.get("/v1/status").json()["prefixes"]
        assert prefix["out_of_memory"] > 0, "memory must have run out for this test to say anything"
        assert prefix["batch"] * 32 * 2**20 <= ROOM


def test_what_the_process_may_not_take_is_not_free() -> None:
    before = free_bytes("cuda")
    _, total = torch.cuda.mem_get_info()
    try:
        torch.cuda.set_per_process_memory_fraction(2**30 / total)
        assert 0 < free_bytes("cuda") <= 2**30 < before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_compiled_code_agrees_there(archive: Archive, tmp_path: Path, precision: str) -> None:
    compiler = Compiler(Shelf(tmp_path / "shelf"))
    try:
        answer = compiler.wait(archive.graph.whole.to("cuda"), precision, 1)  # type: ignore[arg-type]
    finally:
        compiler.close()
    assert answer.is_made, answer.why


def test_the_features_are_those_of_the_network_on_the_host(
    pictures: Path, archive: Archive, transform: TransformSpec, tmp_path: Path
) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        settings = ServerSettings.load(
            roots=(str(pictures),), cache_dir=tmp_path / device, device=device, engine="eager", workers=6
        )
        service = Service(settings, StoreSettings())
        with TestClient(app_of(service), raise_server_exceptions=False) as client:
            assert upload(client, archive).status_code == 201
            dataset = client.post("/v1/datasets", json={"uri": service.roots.uris[0]}).json()["digest"]
            body = {"dataset": dataset, "model": archive.digest, "transform": transform.to_json()}
            found[device] = features(client, {**body, "indices": list(range(SAMPLES))})
        service.close()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-5)
