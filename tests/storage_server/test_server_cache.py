"""Features that a server keeps on disk outlive it, and are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from awkward_models import Archive
from kept_features import GOOD, features, refuse

from hapi.data import TransformSpec
from storage_server.extraction.loading import SampleLoader
from storage_server.memory.budget import MemoryBudget
from storage_server.service import Service

MakeService = Callable[..., Service]


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
    monkeypatch.setattr(SampleLoader, "read", refuse)
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


@pytest.mark.parametrize("name", ["put", "get"])
def test_without_memory_to_keep_features_or_read_them_they_are_computed(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (expected,) = features(make_service(feature_cache_bytes="10MB"), photos, archive, transform, ["output"])
    service = make_service(feature_cache_bytes="10MB")

    def short(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(service.kept, name, short)
    for found in features(service, photos, archive, transform, ["output", "output"]):
        torch.testing.assert_close(found, expected)
