"""The disk tier: found again after a crash, shared by processes, within its bytes, and never wrong."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi.cache import DiskCache, FeatureCache, MemoryCache, disk, layout, mapped, packs, tiers
from hapi.errors import InputError

BUDGET = 2**20


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") * 4


def keys_of(*numbers: int) -> np.ndarray:
    return np.frombuffer(b"".join(map(key, numbers)), np.uint8).reshape(-1, 32)


def found_of(order: np.ndarray) -> list[bool]:
    """By position, whether `read_rows` read it."""
    return [position in order for position in range(len(order))]


def value(number: int, size: int = 20) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, generator=generator), torch.randint(0, 100, (2, 3), generator=generator)


def same(found: tuple[torch.Tensor, ...] | None, number: int, size: int = 20) -> bool:
    return found is not None and all(map(torch.equal, found, value(number, size)))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "below" / "here", BUDGET)
    for number in range(50):
        cache.put(key(number), value(number))
    again = DiskCache(cache.folder, BUDGET)
    for found in (cache, again):
        assert len(found) == 50
        assert all(same(found.get(key(number)), number) for number in range(50))
        assert found.get(key(50)) is None
        assert (found.hits, found.misses) == (50, 1)
        assert found.nbytes == folder_bytes(cache.folder) <= BUDGET
    assert len(list(cache.folder.glob("*.data"))) == 1  # not a file per entry


@given(st.lists(st.sampled_from(sorted(layout.DTYPES)), max_size=3), st.lists(st.integers(0, 3), max_size=3))
def test_tensors_of_every_kind_come_back(tmp_path_factory: pytest.TempPathFactory, kinds: list, shape: list) -> None:
    tensors = tuple(torch.randint(0, 2, shape).to(layout.DTYPES[kind]) for kind in kinds)
    cache = DiskCache(tmp_path_factory.mktemp("kinds"), BUDGET)
    cache.put(key(1), tuple(tensor.mT if tensor.ndim > 1 else tensor for tensor in tensors))
    found = cache.get(key(1))
    assert found is not None
    assert [(tensor.dtype, tensor.shape) for tensor in found] == [
        (tensor.dtype, (tensor.mT if tensor.ndim > 1 else tensor).shape) for tensor in tensors
    ]
    assert all(torch.equal(a, b.mT if b.ndim > 1 else b) for a, b in zip(found, tensors, strict=True))


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"{}",
        b"[[1, 2]]",
        b'[["float32", [-1]]]',
        b'[["object", [1]]]',
        b"[3]",
        b'[["int8", [0, 4611686018427387904]]]',
    ],
)
def test_other_descriptions_are_refused(description: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - also json's own
        layout.allocate(description)


@pytest.mark.parametrize("description", [b'[["int8",[36028797018963968]]]', b'[["float32",[3]]]', b'[["int8",[3]]]'])
def test_an_entry_of_another_length_than_described_is_a_miss(tmp_path: Path, description: bytes) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    cache.put_bytes(key(1), description, [memoryview(b"four")])
    assert cache.get(key(1)) is None
    assert key(1) not in cache, "it can be written anew"


@settings(max_examples=30, deadline=None)
@given(st.integers(4_000, 60_000), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1500)), max_size=60))
def test_the_budget_holds_after_every_step(
    tmp_path_factory: pytest.TempPathFactory, budget: int, steps: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("budget")
    cache = DiskCache(folder, budget)
    for number, size in steps:
        cache.put(key(number), value(number, size))
        assert folder_bytes(folder) <= budget
        found = cache.get(key(number))
        assert found is None or torch.equal(found[0], value(number, len(found[0]))[0])


def test_the_pack_unused_for_longest_makes_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 40_000)  # packs of 10,000 bytes
    number = 0
    while len(list(tmp_path.glob("*.index"))) < 4:
        cache.put(key(number), value(number, 500))
        number += 1
    first, second, *_ = sorted(tmp_path.glob("*.index"))
    os.utime(second, (1, 1))  # as if it was used long ago
    kept = DiskCache(tmp_path, 40_000)
    assert same(kept.get(key(0)), 0, 500)
    del cache
    for extra in range(number, number + 5):
        kept.put(key(extra), value(extra, 500))
    assert first.exists()
    assert not second.exists()
    assert same(kept.get(key(0)), 0, 500)


def test_a_job_that_returns_to_its_samples_keeps_the_first(tmp_path: Path) -> None:
    """With an LRU a cycle through more than fits would find nothing at all."""
    cache = DiskCache(tmp_path, 40_000, keep_used=True)
    found = [0, 0, 0]
    for epoch in range(3):
        for number in range(40):
            if cache.get(key(number)) is not None:
                found[epoch] += 1
            else:
                cache.put(key(number), value(number, 500))
    assert found[0] == 0
    assert found[1] == found[2] >= 12
    assert folder_bytes(tmp_path) <= 40_000
    following = DiskCache(tmp_path, 40_000, keep_used=True)  # another job: what nobody uses makes room
    following.put(key(99), value(99, 500))
    assert same(following.get(key(99)), 99, 500)


def test_whatever_is_cut_off_nothing_wrong_is_found(tmp_path: Path) -> None:
    """Both files cut at every byte of the last entries, and every byte of a small pack changed."""
    whole = tmp_path / "whole"
    cache = DiskCache(whole, BUDGET)
    for number in range(3):
        cache.put(key(number), (torch.full((4,), float(number)),))
    cache.close()
    files = [next(whole.glob("*.index")), next(whole.glob("*.data"))]
    for file in files:
        content = file.read_bytes()
        for length in range(len(content)):
            flipped = content[:length] + bytes([content[length] ^ 0xFF]) + content[length + 1 :]
            for damaged in (content[:length], flipped):
                copy = tmp_path / "copy"
                shutil.copytree(whole, copy)
                (copy / file.name).write_bytes(damaged)
                _still_right(copy)
                shutil.rmtree(copy)


def _still_right(folder: Path) -> None:
    for _ in range(2):  # damage that was met is gone the second time, and can be written anew
        cache = DiskCache(folder, BUDGET)
        for number in range(3):
            found = cache.get(key(number))
            assert found is None or torch.equal(found[0], torch.full((4,), float(number)))
            if found is None:
                cache.put(key(number), (torch.full((4,), float(number)),))
                assert cache.get(key(number)) is not None
        cache.close()
    assert cache.misses == 0


def test_a_writer_that_died_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))
    cache.close()
    (tmp_path / "1-a.part").write_bytes(b"x")
    (tmp_path / "1-a.data").write_bytes(b"x" * 100)
    cache.put(key(2), value(2))
    assert not list(tmp_path.glob("1-a*"))
    assert same(cache.get(key(1)), 1)
    assert same(cache.get(key(2)), 2)


WORK = """
import sys, torch
from pathlib import Path
from hapi.cache import DiskCache
from tests.hapi.cache.test_cache_disk import key, same, value
cache = DiskCache(Path(sys.argv[1]), int(sys.argv[2]))
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    cache.put(key(number), value(number))
    cache.refresh()
    for other in range(0, 120, 7):
        found = cache.get(key(other))
        assert found is None or same(found, other)
    if number % 20 == 0:
        print(sum(path.stat().st_size for path in Path(sys.argv[1]).iterdir() if path.exists()))
"""


def test_processes_share_a_folder_and_its_budget(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    budget = 12_000
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path), str(budget), str(first), str(first + 80)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in (0, 40)
    ]
    for worker in workers:
        sizes, trouble = worker.communicate(timeout=250)
        assert worker.returncode == 0, trouble
        assert all(0 < int(size) <= budget for size in sizes.split())
    cache = DiskCache(tmp_path, budget)
    found = [number for number in range(120) if cache.get(key(number)) is not None]
    assert found
    assert all(same(cache.get(key(number)), number) for number in found)


def test_what_another_process_writes_is_seen_by_and_by(tmp_path: Path) -> None:
    reader, writer = DiskCache(tmp_path, BUDGET), DiskCache(tmp_path, BUDGET)
    for number in range(3):
        writer.put(key(number), value(number))
        reader.refresh()
        assert same(reader.get(key(number)), number)
    other = DiskCache(tmp_path, BUDGET)
    other.put(key(9), value(9))
    assert len(list(tmp_path.glob("*.index"))) == 2
    for path in sorted(tmp_path.glob("*"))[:2]:
        path.unlink()
    reader.refresh()
    assert reader.get(key(0)) is None


def test_a_child_process_writes_a_pack_of_its_own(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))
    parents = cache._writer
    assert parents is not None
    parents.process = -1  # what a forked child sees: a writer of another process, which goes on
    cache.put(key(2), value(2))
    assert len(list(tmp_path.glob("*.index"))) == 2
    again = DiskCache(tmp_path, BUDGET)
    assert same(again.get(key(1)), 1)
    assert same(again.get(key(2)), 2)


def test_jobs_that_keep_little_go_on_with_the_same_pack(tmp_path: Path) -> None:
    """Each pack is two open files for whoever uses the folder: a few hundred jobs made it useless."""
    reader = DiskCache(tmp_path, BUDGET)
    for number in range(5):
        job = DiskCache(tmp_path, BUDGET)
        job.put(key(number), value(number))
        job.close()
        reader.refresh()
        assert same(reader.get(key(number)), number)
        (index,) = tmp_path.glob("*.index")
        with open(index, "ab") as file:
            file.write(b"a record over which a job died")
    beside = [DiskCache(tmp_path, BUDGET), DiskCache(tmp_path, BUDGET)]
    for number, job in enumerate(beside, start=5):
        job.put(key(number), value(number))
    assert len(list(tmp_path.glob("*.index"))) == 2, "of two at a time each writes to one of its own"
    last = DiskCache(tmp_path, BUDGET)
    assert all(same(last.get(key(number)), number) for number in range(7))


def test_a_pack_without_room_for_an_entry_is_not_gone_on_with(tmp_path: Path) -> None:
    for number in range(4):
        job = DiskCache(tmp_path, 40_000)  # packs of 10,000 bytes, of which an entry takes 6,000
        job.put(key(number), value(number, 1500))
        job.close()
    assert len(list(tmp_path.glob("*.index"))) == 4
    assert folder_bytes(tmp_path) <= 40_000


def test_a_full_disk_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "writev", full)
        for number in range(2, 5):
            cache.put(key(number), value(number))
    assert [record.message for record in caplog.records] == [
        f"cache directory {tmp_path}: No space left on device; no more features are kept there"
    ]
    cache.put(key(5), value(5))
    assert same(cache.get(key(1)), 1)
    assert len(cache) == len(DiskCache(tmp_path, BUDGET)) == 1


def test_a_disk_that_was_full_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a server that runs for weeks, on a disk that others filled for an hour."""
    monkeypatch.setattr(disk, "REST_SECONDS", 0.0)
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level(logging.INFO):
        with monkeypatch.context() as patched:
            patched.setattr(os, "writev", full)
            for number in range(2, 5):
                cache.put(key(number), value(number))
        for number in range(5, 7):
            cache.put(key(number), value(number))
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "No space left on device; no more features are kept there",
        "features are kept there again",
    ]
    later = DiskCache(tmp_path, BUDGET)
    assert [same(later.get(key(number)), number) for number in range(1, 7)] == [True, *[False] * 3, True, True]


def test_a_folder_that_cannot_be_written_to_serves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only file system, or another user's packs."""
    writer = DiskCache(tmp_path, BUDGET)
    for number in range(3):
        writer.put(key(number), value(number))
    writer.close()
    (data,) = tmp_path.glob("*.data")
    data.write_bytes(b"\xff" + data.read_bytes()[1:])  # of the first entry
    opened = os.open

    def read_only(path: object, flags: int, *more: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(disk, "_LOCK", "none/lock")
    cache = DiskCache(tmp_path, BUDGET)
    assert [same(cache.get(key(number)), number) for number in range(3)] == [False, True, True]
    assert cache.get(key(0)) is None
    for number in range(3, 5):
        cache.put(key(number), value(number))
    assert [record.message.partition("; ")[2] for record in caplog.records][1:] == ["no more features are kept there"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cache directory .*file.* Choose another"):
        DiskCache(tmp_path / "file", BUDGET)


def test_reading_rows_takes_what_is_described_alike_only(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    for number in range(20):
        cache.put(key(number), value(number))
    cache.put(key(20), value(20, 21))  # of another shape
    description = layout.describe(value(1))

    def read(*numbers: int, described: bytes = description) -> list[bool]:
        columns = layout.allocate_rows(described, len(numbers))
        order = cache.read_rows(cache.locate(keys_of(*numbers)), described, columns)
        for row in np.flatnonzero(order >= 0).tolist():
            assert same(tuple(column[row] for column in columns), numbers[order[row]])
        return found_of(order)

    assert read(7, 3, 99, 7) == [True, True, False, True]
    assert read(20, 0, 19, 20) == [False, True, True, False]
    assert (cache.hits, cache.misses) == (5, 3)
    other = layout.describe((torch.empty(20, dtype=torch.int32), torch.empty(2, 3, dtype=torch.int64)))
    assert len(other) != len(description)
    assert read(1, 2, described=other) == [False, False]
    alike = description.replace(b"[2,3]", b"[3,2]")
    assert read(1, 2, described=alike) == [False, False]
    assert read(1, 2) == [True, True]
    assert read() == []
    places = cache.locate(keys_of(1, 99))
    assert (places >= 0).tolist() == [True, False]
    another = DiskCache(tmp_path, BUDGET)
    another.put(key(50), value(50))
    cache.put(key(51), value(51))  # the pack has grown
    cache.refresh()
    assert read(50, 51, 0) == [True, True, True]
    assert read(50, 3, 99, 50, 2, 20) == [True, True, False, True, True, False], "in two packs, by turns"
    for path in tmp_path.glob("*"):
        path.unlink()
    assert read(5, 6) == [True, True], "what is mapped stays as long as it is"
    cache.refresh()
    assert read(5, 6) == [False, False]


@pytest.mark.parametrize("name", ["index", "data"])
@pytest.mark.parametrize("is_seen", [False, True])
def test_rows_that_are_damaged_are_not_found(tmp_path: Path, name: str, is_seen: bool) -> None:
    """Cut off or changed in the middle, before the first look or (cut off only) after."""
    for is_cut in (True, False)[: 1 if is_seen else 2]:
        folder = tmp_path / f"{is_cut}"
        writer = DiskCache(folder, BUDGET)
        for number in range(9):
            writer.put(key(number), value(number))
        writer.close()
        cache = DiskCache(folder, BUDGET)
        description, keys = layout.describe(value(1)), keys_of(*range(9))
        if is_seen:
            columns = layout.allocate_rows(description, 9)
            assert all(found_of(cache.read_rows(cache.locate(keys), description, columns)))
        (path,) = folder.glob(f"*.{name}")
        content = path.read_bytes()
        middle = len(content) // 2
        with open(path, "r+b") as file:
            file.truncate(middle if is_cut else len(content))
            file.seek(middle)
            file.write(b"" if is_cut else bytes([content[middle] ^ 0xFF]))
        again = cache if is_seen or name == "data" else DiskCache(folder, BUDGET)
        columns = layout.allocate_rows(description, 9)
        order = again.read_rows(again.locate(keys), description, columns)
        found = np.array(found_of(order))
        assert 0 < found.sum() <= 9 - (name == "data" or not is_seen)
        for row in np.flatnonzero(order >= 0).tolist():
            assert same(tuple(column[row] for column in columns), int(order[row]))
        if name == "data":
            assert (again.locate(keys[~found]) < 0).all(), "they can be written anew"


def test_a_pack_that_cannot_be_mapped_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some file systems know no maps: everything was computed anew in each epoch, and nothing said why."""
    cache = DiskCache(tmp_path, BUDGET)
    for number in range(3):
        cache.put(key(number), value(number))

    def no_map(*_: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mapped, "_map", no_map)
    description = layout.describe(value(1))
    for _ in range(2):
        columns = layout.allocate_rows(description, 3)
        assert (cache.read_rows(cache.locate(keys_of(0, 1, 2)), description, columns) == -1).all()
    (said,) = (record.message for record in caplog.records)
    assert said.startswith(f"cache directory {tmp_path}: ")
    assert said.endswith("cannot be read ([Errno 19] No such device)")


def test_tiers_look_in_memory_first(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, BUDGET)
    cache = FeatureCache(MemoryCache(10_000), disk)
    assert cache.get(key(1)) is None
    cache.put(key(1), value(1))
    assert same(cache.get(key(1)), 1)
    assert (disk.hits, cache.hits, cache.misses) == (0, 1, 1)
    assert key(1) in cache
    cache.close()
    later = FeatureCache(MemoryCache(10_000), DiskCache(tmp_path, BUDGET))
    for _ in range(3):
        assert same(later.get(key(1)), 1)
    assert later.disk is not None
    assert (later.disk.hits, later.hits) == (1, 3)
    assert later.nbytes > 0
    for alone in (FeatureCache(None, disk), FeatureCache(MemoryCache(10_000)), FeatureCache(None)):
        alone.put(key(2), value(2))
        alone.flush()
        assert (alone.get(key(2)) is None) == (alone.memory is alone.disk)
        alone.close()


def test_a_slow_disk_gets_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskCache(tmp_path, BUDGET)
    go_on = threading.Event()
    write = DiskCache.put

    def slow(self: DiskCache, name: bytes, tensors: tuple[torch.Tensor, ...]) -> None:
        assert go_on.wait(60)
        write(self, name, tensors)

    monkeypatch.setattr(DiskCache, "put", slow)
    monkeypatch.setattr(tiers, "WAITING_BYTES", 10_000)
    cache = FeatureCache(MemoryCache(10**6), disk)
    for number in range(50):
        cache.put(key(number), value(number))
    go_on.set()
    cache.close()
    assert 0 < len(disk) < 50
    assert all(same(cache.get(key(number)), number) for number in range(50))
    cache.put(key(99), value(99))  # closing is no end
    cache.close()
    assert same(disk.get(key(99)), 99)


def test_a_pack_that_somebody_removed_is_begun_anew(tmp_path: Path) -> None:
    """An operator who empties the folder of a server that runs."""
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))
    for path in tmp_path.iterdir():
        path.unlink()
    cache.refresh()
    for number in (2, 3):
        cache.put(key(number), value(number))
    assert cache.get(key(1)) is None
    assert all(same(DiskCache(tmp_path, BUDGET).get(key(number)), number) for number in (2, 3))


def test_what_is_there_is_known_while_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server asks for each sample, with a lock that all requests need."""
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))
    hangs, go_on, write = threading.Event(), threading.Event(), os.writev

    def slow(*given: object) -> int:
        hangs.set()
        assert go_on.wait(60)
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "writev", slow)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(cache.put, key(2), value(2))
        assert hangs.wait(60)
        try:
            asked = pool.submit(lambda: [key(number) in cache for number in (1, 2)])
            assert asked.result(5) == [True, False]
        finally:
            go_on.set()
        writing.result(60)
    assert key(2) in cache


def test_an_entry_for_which_memory_runs_out_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path, BUDGET)
    cache.put(key(1), value(1))

    def torn(self: packs.PackWriter, *_: object) -> None:
        os.write(self._data.number, b"half of it")
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(packs.PackWriter, "append", torn)
        cache.put(key(2), value(2))
    cache.put(key(3), value(3))
    assert [same(cache.get(key(number)), number) for number in (1, 2, 3)] == [True, False, True]


def test_without_memory_for_a_thread_features_are_kept_in_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(MemoryCache(10_000), DiskCache(tmp_path, BUDGET))

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        cache.put(key(1), value(1))
    cache.put(key(2), value(2))
    cache.close()
    later = DiskCache(tmp_path, BUDGET)
    assert [same(later.get(key(number)), number) for number in (1, 2)] == [False, True]
    assert same(cache.get(key(1)), 1)


def test_trouble_with_one_entry_does_not_end_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, write = FeatureCache(None, DiskCache(tmp_path, BUDGET)), DiskCache.put

    def failing(self: DiskCache, name: bytes, tensors: tuple[torch.Tensor, ...]) -> None:
        if name == key(1):
            raise RuntimeError("of a kind that nobody thought of")
        write(self, name, tensors)

    monkeypatch.setattr(DiskCache, "put", failing)
    for number in range(3):
        cache.put(key(number), value(number))
    cache.close()
    later = DiskCache(tmp_path, BUDGET)
    assert [same(later.get(key(number)), number) for number in range(3)] == [True, False, True]
    assert [record.message for record in caplog.records] == [f"features could not be written to {tmp_path}"]
