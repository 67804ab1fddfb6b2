"""Datasets: listed once, kept, readable for those who may."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hapi.data import Manifest, build_manifest
from hapi.errors import ForbiddenError, ManifestError, ObjectNotFoundError, UnknownDatasetError
from hapi.settings import StoreSettings
from storage_server.access.auth import Tenant
from storage_server.access.roots import Roots
from storage_server.library import datasets as module
from storage_server.library.datasets import DatasetStore
from storage_server.library.locks import KeyedLocks


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos, tmp_path / "data" / "photos")
    return tmp_path / "data"


@pytest.fixture
def tenant(folder: Path) -> Tenant:
    return Tenant("alice", Roots([str(folder)]))


def datasets(tmp_path: Path, kept: int = 1000) -> DatasetStore:
    return DatasetStore(tmp_path / "cache", StoreSettings(), kept)


def test_a_manifest_is_what_a_local_listing_gives(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    manifest = datasets(tmp_path).register(str(folder / "photos"), tenant)
    assert manifest.digest == build_manifest(folder / "photos").digest
    assert len(manifest) == 13


def test_it_is_kept_until_it_is_refreshed(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    store = datasets(tmp_path)
    first = store.register(str(folder / "photos"), tenant)
    (folder / "photos" / "a" / "0.png").unlink()
    assert store.register(f"file://{folder}/photos/", tenant).digest == first.digest
    second = store.register(str(folder / "photos"), tenant, refresh=True)
    assert len(second) == 12
    assert store.register(str(folder / "photos"), tenant).digest == second.digest
    assert len(store.manifest(first.digest, tenant)) == 13, "requests that began with the first one go on"


def test_callers_who_come_together_share_a_listing(
    tmp_path: Path, folder: Path, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, address = datasets(tmp_path), str(folder / "photos")
    first, waiting = threading.Event(), threading.Barrier(5)
    listings: list[str] = []

    def slow(uri: str, **settings: object) -> Manifest:
        listings.append(uri)
        first.set()
        if len(listings) == 1:
            waiting.wait(30)
        return build_manifest(uri)

    monkeypatch.setattr("storage_server.library.datasets.build_manifest", slow)
    held = KeyedLocks.held

    def entering(self: KeyedLocks, key: str) -> AbstractContextManager[None]:
        if first.is_set():
            waiting.wait(30)
        return held(self, key)

    monkeypatch.setattr(KeyedLocks, "held", entering)
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(store.register, address, tenant, True)]
        assert first.wait(30)
        calls += [pool.submit(store.register, address, tenant, True) for _ in range(4)]
        digests = {call.result(30).digest for call in calls}
    assert len(digests) == 1
    assert len(listings) == 2


def test_it_survives_a_restart(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    digest = datasets(tmp_path).register(str(folder / "photos"), tenant).digest
    shutil.rmtree(folder / "photos" / "a")
    again = datasets(tmp_path)
    assert len(again.manifest(digest, tenant)) == 13
    assert again.register(str(folder / "photos"), tenant).digest == digest


def test_an_unknown_digest_asks_for_registration(tmp_path: Path, tenant: Tenant) -> None:
    with pytest.raises(UnknownDatasetError, match="Register its URI again"):
        datasets(tmp_path).manifest("0" * 64, tenant)


@pytest.mark.parametrize("damage", [b"", b"not arrow", None])
def test_a_damaged_kept_manifest_counts_as_absent(
    tmp_path: Path, folder: Path, tenant: Tenant, damage: bytes | None
) -> None:
    digest = datasets(tmp_path).register(str(folder / "photos"), tenant).digest
    path = tmp_path / "cache" / f"{digest}.arrow"
    other = build_manifest(folder / "photos" / "a")
    path.write_bytes(other.to_bytes() if damage is None else damage)
    again = datasets(tmp_path)
    with pytest.raises(UnknownDatasetError):
        again.manifest(digest, tenant)
    assert again.register(str(folder / "photos"), tenant).digest == digest


def test_a_digest_alone_opens_nothing_to_another_tenant(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    store = datasets(tmp_path)
    digest = store.register(str(folder / "photos"), tenant).digest
    (folder / "other").mkdir()
    stranger = Tenant("eve", Roots([str(folder / "other")]))
    with pytest.raises(ForbiddenError, match="eve"):
        store.manifest(digest, stranger)
    with pytest.raises(ForbiddenError):
        store.register(str(folder / "photos"), stranger)


def test_a_list_of_files_may_be_named_and_its_folder_must_be_readable(
    tmp_path: Path, folder: Path, tenant: Tenant
) -> None:
    (folder / "photos" / "some.csv").write_text("path,label\na/0.png,x\nb/1.png,y\n")
    assert len(datasets(tmp_path).register(str(folder / "photos" / "some.csv"), tenant)) == 2
    (folder / "some.csv").mkdir()  # a root that looks like a list: its folder is not readable
    narrow = Tenant("bob", Roots([str(folder / "some.csv")]))
    with pytest.raises(ForbiddenError):
        datasets(tmp_path).register(str(folder / "some.csv"), narrow)


def test_what_cannot_be_listed_is_explained(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    with pytest.raises(ObjectNotFoundError, match="absent"):
        datasets(tmp_path).register(str(folder / "absent"), tenant)
    (folder / "empty").mkdir()
    with pytest.raises(ManifestError):
        datasets(tmp_path).register(str(folder / "empty"), tenant)


def test_memory_holds_the_latest_manifests_and_the_disk_all(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    store = datasets(tmp_path, kept=14)
    whole = store.register(str(folder / "photos"), tenant)
    part = store.register(str(folder / "photos" / "a"), tenant)
    assert list(store._manifests) == [part.digest]
    assert store.manifest(whole.digest, tenant).digest == whole.digest


def test_one_store_serves_all_requests(tmp_path: Path, folder: Path, tenant: Tenant) -> None:
    store = datasets(tmp_path)
    manifest = store.register(str(folder / "photos"), tenant)
    assert store.store(manifest) is store.store(manifest)
    store.close()


def test_a_full_disk_costs_the_memory_of_a_listing_not_the_dataset(
    tmp_path: Path, folder: Path, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, address = datasets(tmp_path), str(folder / "photos")
    old = store.register(address, tenant)
    (folder / "photos" / "a" / "0.png").unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_whole", full)
        new = store.register(address, tenant, refresh=True)
    assert (len(old), len(new)) == (13, 12)
    assert store.manifest(new.digest, tenant) is new
    assert store.register(address, tenant) is new, "not the older one that is on the disk"
    assert "kept in memory only: [Errno 28] No space left on device" in caplog.text
    (folder / "photos" / "a" / "1.png").unlink()
    newest = store.register(address, tenant, refresh=True)
    assert datasets(tmp_path).register(address, tenant).digest == newest.digest


def test_manifests_that_nobody_uses_make_room_on_the_disk(
    tmp_path: Path, folder: Path, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each listing of a folder that changes made one more file, for ever."""
    monkeypatch.setattr(module, "MANIFEST_BYTES", 1)
    store, digests = datasets(tmp_path), []
    for number in range(4):
        (folder / "photos" / "a" / f"{number}.png").unlink()
        digests.append(store.register(str(folder / "photos"), tenant, refresh=True).digest)
    for digest in digests:
        os.utime(tmp_path / "cache" / f"{digest}.arrow", (1, 1))
    again = datasets(tmp_path)
    again.manifest(digests[3], tenant)  # which is a use
    (folder / "photos" / "a" / "4.png").unlink()
    last = again.register(str(folder / "photos"), tenant, refresh=True).digest
    assert {path.stem for path in (tmp_path / "cache").glob("*.arrow")} == {digests[3], last}
