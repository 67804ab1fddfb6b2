"""Servers that share features in a folder or bucket; what is wrong with it is no request's trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from awkward_models import Archive
from fastapi.testclient import TestClient
from kept_features import GOOD, features, refuse

from hapi.cache.depot import Depot
from hapi.data import TransformSpec
from hapi.data.stores import LocalStore, S3Store
from hapi.errors import InputError, StoreUnavailableError
from hapi.settings import StoreSettings
from hapi.wire.protocol import ServerStatus
from storage_server.extraction.loading import SampleLoader
from storage_server.http.app import app_of
from storage_server.service import Service
from storage_server.settings import ServerSettings

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

MakeService = Callable[..., Service]
EXACT = {"engine": "eager", "max_batch": 1}


def value(service: Service, name: str) -> float:
    service.render_metrics()
    return service.metrics.registry.get_sample_value(f"hapi_feature_{name}") or 0


def test_what_one_server_computed_another_does_not(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = {"cache_uri": str(tmp_path / "shared"), "cache_uri_bytes": "2MB", **EXACT}
    one = make_service(cache_dir=tmp_path / "one", **shared)
    (expected,) = features(one, photos, archive, transform, ["add"])
    monkeypatch.setattr(SampleLoader, "read", refuse)
    other = make_service(cache_dir=tmp_path / "other", **shared)
    assert other.kept.bucket is not None
    other.kept.bucket.flush()
    assert torch.equal(features(other, photos, archive, transform, ["add"])[0], expected)
    assert value(other, "bucket_hits") == len(GOOD)
    assert value(other, "bucket_bytes") > len(GOOD) * expected[0].nbytes
    assert (value(other, "bucket_failures"), value(other, "bucket_dropped")) == (0, 0)
    assert other.device.depth == 0
    assert other.queue.used_bytes == 0
    assert value(other, "cache_bytes") > 0, "what was fetched is kept near by as well"


def test_a_deeper_cut_begins_in_the_bucket(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = {"cache_uri": (tmp_path / "shared").as_uri(), **EXACT}
    alone = make_service(cache_dir=tmp_path / "alone", feature_cache_bytes=0, **EXACT)
    (expected,) = features(alone, photos, archive, transform, ["output"])
    features(make_service(cache_dir=tmp_path / "one", **shared), photos, archive, transform, ["stem"])
    monkeypatch.setattr(SampleLoader, "read", refuse)
    again = make_service(cache_dir=tmp_path / "one", **shared)
    assert again.kept.bucket is not None
    again.kept.bucket.flush()
    assert torch.equal(features(again, photos, archive, transform, ["output"])[0], expected)
    assert value(again, "cache_continued_total") == len(GOOD)


@pytest.mark.s3
def test_the_same_in_a_real_bucket(
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    tmp_path: Path,
    s3_store: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    S3Store("server-features", "", s3_store.settings()).create_bucket()

    def service(name: str) -> Service:
        settings = ServerSettings.load(
            roots=(str(photos),), cache_dir=tmp_path / name, cache_uri="s3://server-features/kept", **EXACT
        )
        return Service(settings, s3_store.settings())

    (expected,) = features(service("one"), photos, archive, transform, ["output"])
    monkeypatch.setattr(SampleLoader, "read", refuse)
    other = service("other")
    assert other.kept.bucket is not None
    other.kept.bucket.flush()
    assert torch.equal(features(other, photos, archive, transform, ["output"])[0], expected)
    assert other.kept.bucket.hits == len(GOOD)


def test_a_changed_object_has_other_features(
    make_service: MakeService, archive: Archive, transform: TransformSpec, photos: Path, tmp_path: Path
) -> None:
    """The version of an object is part of the key, in every tier."""
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    source = sorted(photos.glob("a/*.png"))
    for path in [*source, *photos.glob("b/*.png")]:
        (data / "a" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    shared = {"roots": (str(data),), "cache_uri": str(tmp_path / "shared"), **EXACT}
    (before,) = features(make_service(cache_dir=tmp_path / "one", **shared), data, archive, transform, ["output"])
    (data / "a" / "a0.png").write_bytes((data / "a" / "b5.png").read_bytes())
    other = make_service(cache_dir=tmp_path / "other", **shared)
    assert other.kept.bucket is not None
    other.kept.bucket.flush()
    (after,) = features(other, data, archive, transform, ["output"])
    assert torch.equal(after[0], before[11])
    assert torch.equal(after[1:], before[1:])
    assert other.kept.bucket.hits == len(GOOD) - 1


@pytest.mark.parametrize("method", ["list", "get", "put"])
def test_a_bucket_that_fails_is_counted_and_no_request_fails(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    shared = tmp_path / "shared"
    settings = {"cache_uri": str(shared), **EXACT}
    (expected,) = features(make_service(**settings), photos, archive, transform, ["output"])
    real = getattr(LocalStore, method)

    def fails(store: LocalStore, *given: object) -> object:
        if store.uri == shared.as_uri():
            raise StoreUnavailableError("the bucket is down. Look after it.")
        return real(store, *given)

    monkeypatch.setattr(LocalStore, method, fails)
    service = make_service(cache_dir=tmp_path / "other", **settings)
    assert service.kept.bucket is not None
    service.kept.bucket.flush()
    with TestClient(app_of(service)) as client:
        status = ServerStatus.model_validate(client.get("/v1/status").raise_for_status().json())
        assert "hapi_feature_bucket_failures" in client.get("/metrics").text
    assert status.cache is not None
    assert status.cache.bucket is not None
    assert status.cache.bucket.failures == (0 if method == "put" else 1)
    if method == "put":
        shared = tmp_path / "empty"
    settings["cache_uri"] = str(shared)
    again = make_service(cache_dir=tmp_path / "again", **settings)
    (found,) = features(again, photos, archive, transform, ["output"])
    assert torch.equal(found, expected)
    assert value(again, "bucket_failures") == 1
    assert value(again, "bucket_dropped") == len(GOOD)


def test_wrong_features_in_the_bucket_are_not_sent(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of another shape than the cut's: who writes into a bucket is not known."""
    settings = {"cache_uri": str(tmp_path / "shared"), "feature_cache_bytes": 0, **EXACT}
    (expected,) = features(make_service(**settings), photos, archive, transform, ["output"])
    monkeypatch.setattr(Depot, "get", lambda *_: (torch.zeros(7),))
    again = make_service(**settings)
    assert again.kept.bucket is not None
    again.kept.bucket.flush()
    assert torch.equal(features(again, photos, archive, transform, ["output"])[0], expected)
    assert again.kept.bucket.hits == len(GOOD)


def test_where_tenants_read_no_features_are_kept(photos: Path, tmp_path: Path) -> None:
    for uri in (str(photos), str(photos / "below"), photos.parent.as_uri()):
        with pytest.raises(InputError, match=r"within each other.*--cache-uri a prefix of its own"):
            Service(ServerSettings.load(roots=(str(photos),), cache_dir=tmp_path, cache_uri=uri), StoreSettings())
    with pytest.raises(InputError, match=r"--cache-uri: .*relative"):
        Service(ServerSettings.load(roots=(str(photos),), cache_dir=tmp_path, cache_uri="here"), StoreSettings())
