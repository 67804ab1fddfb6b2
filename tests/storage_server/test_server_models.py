"""Models: received, checked, kept, loaded once, dropped."""

from __future__ import annotations

import errno
import itertools
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from awkward_models import Archive

from hapi.errors import (
    ArchiveError,
    BusyError,
    DigestMismatchError,
    InputError,
    MemoryBudgetError,
    ServiceError,
    TooLargeError,
    UnknownCutError,
    UnknownModelError,
)
from hapi.files import Draft
from storage_server.library import models
from storage_server.library.archives import ArchiveStore
from storage_server.library.models import ModelStore, Upload
from storage_server.memory.budget import MemoryBudget
from storage_server.metrics import Metrics

MakeStore = Callable[..., ModelStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    def make(budget: int = 10**9, model_bytes: int = 10**7, total_bytes: int = 10**8) -> ModelStore:
        archives = ArchiveStore(tmp_path / "models", model_bytes, total_bytes)
        memory = MemoryBudget("cpu", budget, free=lambda device: 10**12)
        return ModelStore(archives, memory, "cpu", Metrics(), clock=itertools.count(0, 60).__next__)  # nobody waits

    return make


def send(store: ModelStore, archive: Archive, tenant: str = "alice", digest: str = "") -> bool:
    upload = Upload(store, digest or archive.digest, tenant)
    try:
        data = archive.path.read_bytes()
        for start in range(0, len(data), 1000):
            upload.write(data[start : start + 1000])
        return upload.finish()[1]
    finally:
        upload.close()


def files(store: ModelStore) -> list[str]:
    return sorted(path.suffix for path in store.archives.folder.iterdir())


def test_a_model_is_new_once_and_described_by_its_cuts(make_store: MakeStore, archive: Archive) -> None:
    store = make_store()
    assert send(store, archive) is True
    assert send(store, archive, "bob") is False
    info = store.info(archive.digest)
    assert [cut.name for cut in info.cuts] == [cut.name for cut in archive.graph.cuts]
    assert info.bytes == archive.path.stat().st_size
    assert files(store) == [".hapi", ".json"]


def test_it_survives_a_restart_without_being_loaded(make_store: MakeStore, archive: Archive) -> None:
    send(make_store(), archive)
    again = make_store()
    assert again.info(archive.digest).name == archive.graph.name
    assert again.loaded() == []
    with again.lease(archive.digest) as lease:
        image = torch.randn(2, *archive.graph.inputs[0].shape)
        torch.testing.assert_close(lease.prefix("output").run(image)[0], archive.graph(image).detach())


def test_bytes_that_are_not_what_was_named_are_refused_and_leave_nothing(
    make_store: MakeStore, archive: Archive
) -> None:
    store = make_store()
    with pytest.raises(DigestMismatchError, match=archive.digest):
        send(store, archive, digest="0" * 64)
    assert files(store) == []


def test_an_archive_that_is_none_is_refused_and_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    import hashlib

    store = make_store()
    evil = tmp_path / "evil"
    evil.write_bytes(b"\x80\x04\x95pickle" * 100)
    fake = Archive(None, evil, hashlib.sha256(evil.read_bytes()).hexdigest())  # type: ignore[arg-type]
    with pytest.raises(ArchiveError):
        send(store, fake)
    assert files(store) == []
    assert store.loaded() == []


def test_an_upload_over_the_limit_is_stopped_on_its_way(make_store: MakeStore, archive: Archive) -> None:
    store = make_store(model_bytes=1500)
    upload = Upload(store, archive.digest, "alice")
    upload.write(b"x" * 1500)
    with pytest.raises(TooLargeError, match=r"1\.5 kB"):
        upload.write(b"x")
    upload.close()
    assert files(store) == []


def test_many_uploads_of_one_model_at_once_keep_one(make_store: MakeStore, archive: Archive) -> None:
    store = make_store()
    barrier, results = threading.Barrier(6), []

    def work() -> None:
        barrier.wait(30)
        results.append(send(store, archive))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [False] * 5 + [True]
    assert files(store) == [".hapi", ".json"]


def test_each_tenant_lists_and_removes_its_own(make_store: MakeStore, archive: Archive, wide_archive: Archive) -> None:
    store = make_store()
    send(store, archive, "alice")
    send(store, archive, "bob")
    send(store, wide_archive, "bob")
    assert [info.digest for info in store.archives.list("alice")] == [archive.digest]
    assert len(store.archives.list("bob")) == 2
    assert store.archives.list("carol") == []
    with pytest.raises(UnknownModelError):
        store.remove(archive.digest, "carol")
    store.remove(archive.digest, "alice")
    assert store.info(archive.digest), "bob sent it, too"
    store.remove(archive.digest, "bob")
    with pytest.raises(UnknownModelError, match="Upload it first"):
        store.info(archive.digest)
    assert store.loaded() == [wide_archive.digest]


def test_a_model_removed_while_in_use_goes_on_until_it_is_free(make_store: MakeStore, archive: Archive) -> None:
    store = make_store()
    send(store, archive)
    image = torch.randn(2, *archive.graph.inputs[0].shape)
    with store.lease(archive.digest) as lease:
        prefix = lease.prefix("output")
        store.remove(archive.digest, "alice")
        torch.testing.assert_close(prefix.run(image)[0], archive.graph(image).detach())
        with pytest.raises(UnknownModelError):
            store.info(archive.digest)
        assert send(store, archive) is True, "it may come back meanwhile"
        store.remove(archive.digest, "alice")
    assert store.loaded() == []
    assert store._budget.weight_bytes == 0


def test_weights_are_promised_once_for_all_cuts_and_users(make_store: MakeStore, archive: Archive) -> None:
    store = make_store()
    send(store, archive)
    with store.lease(archive.digest) as one, store.lease(archive.digest) as two:
        first = one.prefix("stem.2").memory.weight_bytes
        assert 0 < store._budget.weight_bytes == first
        whole = two.prefix("output").memory.weight_bytes
        assert first < store._budget.weight_bytes == whole == archive.graph.weight_bytes
        assert one.prefix("output") is two.prefix("output")
    assert store.loaded() == [archive.digest], "it stays for the next request"


def test_idle_models_make_room_and_used_ones_do_not(
    make_store: MakeStore, archive: Archive, wide_archive: Archive
) -> None:
    store = make_store(budget=wide_archive.graph.weight_bytes + 10)
    send(store, archive)
    send(store, wide_archive)
    with store.lease(archive.digest) as lease:
        lease.prefix("output")
        with store.lease(wide_archive.digest) as other, pytest.raises(BusyError):
            other.prefix("output")
    with store.lease(wide_archive.digest) as other:
        other.prefix("output")
    assert store.loaded() == [wide_archive.digest]
    assert store._budget.weight_bytes == wide_archive.graph.weight_bytes


def test_weights_larger_than_the_budget_are_refused_with_the_numbers(
    make_store: MakeStore, wide_archive: Archive
) -> None:
    store = make_store(budget=1000)
    send(store, wide_archive)
    with store.lease(wide_archive.digest) as lease, pytest.raises(MemoryBudgetError, match="may use 1 kB"):
        lease.prefix("output")


def test_old_archives_make_room_on_the_disk(make_store: MakeStore, archive: Archive, wide_archive: Archive) -> None:
    both = archive.path.stat().st_size + wide_archive.path.stat().st_size
    store = make_store(total_bytes=both - 1)
    send(store, archive)
    send(store, wide_archive)
    with pytest.raises(UnknownModelError):
        store.info(archive.digest)
    with store.lease(wide_archive.digest), pytest.raises(TooLargeError, match="in use leave no room"):
        send(store, archive)
    assert files(store) == [".hapi", ".json"]
    send(store, archive)
    assert store.info(archive.digest)


def test_a_cut_and_a_kind_of_model_that_do_not_exist(
    make_store: MakeStore, archive: Archive, two_inputs_archive: Archive
) -> None:
    store = make_store()
    send(store, archive)
    send(store, two_inputs_archive)
    with store.lease(archive.digest) as lease, pytest.raises(UnknownCutError, match="Close to it: stem"):
        lease.prefix("stem.3")
    with store.lease(two_inputs_archive.digest) as lease, pytest.raises(InputError, match="takes 2 inputs"):
        lease.prefix("output")


def test_leftovers_of_a_crash_are_removed_and_running_uploads_are_not(make_store: MakeStore, archive: Archive) -> None:
    store = make_store()
    running = Upload(store, archive.digest, "alice")
    running.write(archive.path.read_bytes())
    (store.archives.folder / "0123456789abcdef.part").write_bytes(b"half an upload")
    make_store()  # another server over the same folder
    assert files(store) == [".part"]
    assert running.finish()[1] is True
    running.close()


def test_a_draft_that_is_not_committed_vanishes(tmp_path: Path) -> None:
    draft = Draft(tmp_path)
    draft.write(b"data")
    draft.discard()
    draft.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["../../etc/passwd", "a" * 63, "A" * 64, "0" * 64 + "/x", ""])
def test_a_digest_that_is_none_never_becomes_a_path(make_store: MakeStore, digest: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        make_store().info(digest)


def test_a_damaged_archive_is_asked_for_again(make_store: MakeStore, archive: Archive) -> None:
    """Bytes that rot on the disk: the model was there for whoever asked, and could neither be used nor sent again."""
    send(make_store(), archive)
    store = make_store()
    (path,) = store.archives.folder.glob("*.hapi")
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 0xFF]), whole[: len(whole) // 2], b""):
        path.unlink()  # a graph may be mapped from it
        path.write_bytes(damaged)
        with pytest.raises(UnknownModelError, match="Upload it first"), store.lease(archive.digest):
            pass
        assert send(store, archive) is True
        with make_store().lease(archive.digest) as lease:
            assert lease.graph.name == archive.graph.name
        store = make_store()


def test_an_archive_that_cannot_be_read_now_stays(
    make_store: MakeStore, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(make_store(), archive)
    store = make_store()

    def too_many(*_: object) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", too_many)
        with pytest.raises(ServiceError, match=r"Too many open files.*operator") as caught, store.lease(archive.digest):
            pass
    assert "/" not in str(caught.value), "no paths of the server"
    with store.lease(archive.digest):
        pass


def test_what_is_sent_and_never_used_does_not_stay_in_memory(
    make_store: MakeStore, archive: Archive, wide_archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "UNUSED_KEPT", 1)
    store = make_store()
    send(store, archive)
    send(store, wide_archive)
    assert store.loaded() == [wide_archive.digest]
    with store.lease(archive.digest), store.lease(wide_archive.digest):
        assert len(store.loaded()) == 2
    assert store.loaded() == [wide_archive.digest], "the one that was asked for last"


def test_an_archive_that_made_room_takes_none_any_more(
    make_store: MakeStore, archive: Archive, wide_archive: Archive
) -> None:
    """A mapped file that was removed keeps its bytes on the disk."""
    store = make_store(total_bytes=archive.path.stat().st_size + wide_archive.path.stat().st_size - 1)
    send(store, archive)
    with store.lease(archive.digest) as lease:
        lease.prefix("output")
    send(store, wide_archive)
    assert store.loaded() == [wide_archive.digest]
    assert store._budget.weight_bytes == 0


def test_a_full_disk_is_said_to_whoever_sends_a_model(make_store: MakeStore, wide_archive: Archive) -> None:
    store, limits = make_store(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # the nearest to a full disk that a process can have
    try:
        with pytest.raises(ServiceError, match=r"cannot keep the archive: File too large.*make room"):
            send(store, wide_archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(store) == []
    assert send(store, wide_archive) is True
