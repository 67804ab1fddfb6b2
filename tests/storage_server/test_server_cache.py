"""Features that a server keeps on disk outlive it, and are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from awkward_models import Archive
from fastapi.testclient import TestClient

from hapi.data import TransformSpec
from hapi.errors import StoreUnavailableError
from hapi.wire import read_stream
from storage_server.extraction.loading import SampleLoader
from storage_server.http.app import app_of
from storage_server.memory.budget import MemoryBudget
from storage_server.service import Service

MakeService = Callable[..., Service]
GOOD = list(range(12))


def features(
    service: Service, photos: Path, archive: Archive, transform: TransformSpec, cuts: list[str]
) -> list[torch.Tensor]:
    """Per cut, those of the good photos, in order, of a server that is begun and ended."""
    outcome = []
    with TestClient(app_of(service)) as client:
        dataset = client.post("/v1/datasets", json={"uri": str(photos)}).json()["digest"]
        client.put(f"/v1/models/{archive.digest}", content=archive.path.read_bytes())
        body = {"dataset": dataset, "indices": GOOD, "model": archive.digest, "transform": transform.to_json()}
        for cut in cuts:
            answer = client.post("/v1/extract", json={**body, "cut": cut})
            found = {}
            for batch in read_stream([answer.content]):
                assert not batch.errors
                found |= {int(index): batch.tensors[0][row] for row, index in enumerate(batch.indices)}
            outcome.append(torch.stack([found[index] for index in GOOD]))
    return outcome


@pytest.mark.parametrize("memory", ["0", "10MB"])
def test_features_outlive_the_server(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
) -> None:
    settings = {"feature_cache_bytes": memory, "feature_disk_bytes": "10MB"}
    cuts = [cut.name for cut in archive.graph.cuts[1:]]
    expected = features(make_service(**settings), photos, archive, transform, cuts)
    monkeypatch.setattr(SampleLoader, "read", _refuse)
    again = make_service(**settings)
    assert all(map(torch.equal, features(again, photos, archive, transform, cuts), expected))
    assert again.kept.disk is not None
    assert again.kept.disk.hits == len(cuts) * len(GOOD)


def test_kept_features_cost_few_looks_at_the_memory(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[None] = []
    before: list[int] = []
    look, extract = MemoryBudget.batch_bytes, Service.extract
    monkeypatch.setattr(MemoryBudget, "batch_bytes", lambda self: looks.append(None) or look(self))
    monkeypatch.setattr(Service, "extract", lambda self, *given: before.append(len(looks)) or extract(self, *given))
    features(make_service(feature_cache_bytes="10MB"), photos, archive, transform, ["output", "output"])
    assert before[1] > 0
    assert len(looks) - before[1] < len(GOOD) / 2


def test_without_being_told_nothing_lies_on_disk(service: Service) -> None:
    assert service.kept.disk is None
    assert not (service.settings.cache_dir / "features").exists()


def _refuse(*_: object) -> bytes:
    raise StoreUnavailableError("nothing is to be read.")
