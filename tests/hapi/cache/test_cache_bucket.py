"""The bucket tier: shared, within its bytes, found again, never wrong; and no error of its store is anybody else's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from hapi.cache import BucketCache, DiskCache, FeatureCache, MemoryCache, bucket, depot, parcels
from hapi.cache.depot import HOUR, Depot
from hapi.data import ObjectInfo
from hapi.data.stores import ErasableStore, LocalStore, S3Store
from hapi.errors import StoreUnavailableError

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

BUDGET = 2**20


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") * 4


def value(number: int, size: int = 20) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, generator=generator), torch.randint(0, 100, (2, 3), generator=generator)


def same(found: tuple[torch.Tensor, ...] | None, number: int, size: int = 20) -> bool:
    return found is not None and all(map(torch.equal, found, value(number, size)))


def parcel(*numbers: int, size: int = 20) -> bytes:
    return parcels.wrap([parcels.entry_of(key(number), value(number, size)) for number in numbers])


def names(store: ErasableStore) -> list[str]:
    return sorted(item.key for item in store.list())


class Faulty:
    """A store that is down while `is_down`, and waits at a gate before it writes."""

    def __init__(self, store: ErasableStore) -> None:
        self._store = store
        self.is_down = False
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def uri(self) -> str:
        return self._store.uri

    def _check(self) -> None:
        self.asked += 1
        if self.is_down:
            raise StoreUnavailableError("the store does not answer. Look whether it runs.")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._check()
        yield from self._store.list(prefix)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._check()
        return self._store.get(key, offset, length)

    def put(self, key: str, data: bytes) -> None:
        assert self.gate.wait(60)
        self._check()
        self._store.put(key, data)

    def delete(self, key: str) -> None:
        self._check()
        self._store.delete(key)

    def info(self, key: str) -> ObjectInfo:
        return self._store.info(key)

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., BucketCache]]:
    """Makes caches over one folder; they are closed at the end of the test."""
    made: list[BucketCache] = []

    def cache(store: ErasableStore | None = None, budget: int = BUDGET, **options: float) -> BucketCache:
        made.append(BucketCache(store or LocalStore(tmp_path / "below" / "here"), budget, **options))
        return made[-1]

    yield cache
    for each in made:
        each.close()


Make = Callable[..., BucketCache]


def check_sharing(first: BucketCache, second: Callable[[], BucketCache]) -> None:
    """What one server writes another finds; of many entries few objects are made."""
    for number in range(50):
        first.put(key(number), value(number))
        first.put(key(number), value(number))
    first.flush()
    other = second()
    other.flush()
    for cache in (first, other):
        assert all(key(number) in cache for number in range(50))
        assert all(same(cache.get(key(number)), number) for number in range(50))
        assert key(50) not in cache
        assert cache.get(key(50)) is None
        assert (cache.hits, cache.misses, cache.failures, cache.dropped) == (50, 1, 0, 0)
        assert 0 < cache.nbytes <= BUDGET


def test_what_one_server_keeps_another_finds(make: Make, tmp_path: Path) -> None:
    check_sharing(make(), make)
    assert len(names(LocalStore(tmp_path / "below" / "here"))) == 1


@pytest.mark.s3
def test_the_same_in_a_bucket(make: Make, s3_store: Endpoint) -> None:
    def store() -> S3Store:
        return S3Store("feature-cache", "shared/features", s3_store.settings(attempts=2))

    opened = store()
    opened.create_bucket()
    check_sharing(make(store()), lambda: make(store()))
    (name,) = names(opened)
    full = Depot(opened, opened.info(name).size + 100)
    full.refresh()
    assert full.add(parcel(60), 1)
    assert name not in names(opened)
    assert full.find(key(0)) is None
    opened.delete("not/there")
    opened.close()


def test_tensors_of_every_kind_come_back(make: Make) -> None:
    cache = make()
    kinds = dict(enumerate((torch.float16, torch.bfloat16, torch.bool, torch.int64)))
    for number, dtype in kinds.items():
        cache.put(key(number), (torch.ones(2, 3, dtype=dtype).mT, torch.zeros((), dtype=dtype), torch.zeros(0, 4)))
    cache.put(key(9), (torch.zeros(3, dtype=torch.complex64),))  # of a kind that is not kept
    cache.flush()
    for number, dtype in kinds.items():
        found = cache.get(key(number))
        assert found is not None
        assert [(tensor.dtype, tuple(tensor.shape)) for tensor in found] == [
            (dtype, (3, 2)), (dtype, ()), (torch.float32, (0, 4)),
        ]  # fmt: skip
    assert cache.get(key(9)) is None


def test_whatever_is_damaged_nothing_wrong_is_found(tmp_path: Path) -> None:
    """Every third byte of a parcel changed, and the object cut off there."""
    store = LocalStore(tmp_path)
    whole = parcel(0, 1)
    name = parcels.new_name(2, 1000.0)
    for length in range(0, len(whole), 3):
        flipped = whole[:length] + bytes([whole[length] ^ 0xFF]) + whole[length + 1 :]
        for damaged in (whole[:length], flipped):
            store.put(name, damaged)
            looked = Depot(store, BUDGET)
            looked.refresh()
            right = 0
            for number in range(2):
                try:
                    place = looked.find(key(number))
                    found = looked.get(key(number), *place) if place is not None else None
                except ValueError:
                    found = None
                assert found is None or same(found, number)
                right += found is not None
            assert right < 2


def test_another_key_that_begins_alike_is_not_taken_for_it(tmp_path: Path) -> None:
    looked = Depot(LocalStore(tmp_path), BUDGET)
    looked.add(parcel(1), 1)
    alike = key(1)[:8] + bytes(24)
    place = looked.find(alike)
    assert place is not None
    assert looked.get(alike, *place) is None


@pytest.mark.parametrize(
    "name", ["x.parcel", "000000000001-0123abcd-0.parcel", "000000000001-0123abcd-9999999.parcel", "../a", "readme.txt"]
)
def test_other_objects_are_none_of_its_business(tmp_path: Path, name: str) -> None:
    assert parcels.name_parts(name) is None
    store = LocalStore(tmp_path)
    store.put("readme.txt", b"x" * 5000)
    small = Depot(store, 1000)
    small.refresh()
    assert small.nbytes == 0
    assert small.add(parcel(1), 1)
    assert small.add(parcel(2, size=100), 1)
    assert "readme.txt" in names(store)


def test_the_parcel_used_least_recently_makes_room(tmp_path: Path) -> None:
    store, clock = LocalStore(tmp_path), [10.0 * HOUR]
    size = len(parcel(0))

    def opened() -> Depot:
        found = Depot(store, 3 * size, lambda: clock[0])
        found.refresh()
        return found

    one = opened()
    for number in range(3):
        clock[0] += HOUR
        assert one.add(parcel(number), 1)
    clock[0] += 5 * HOUR
    other = opened()
    place = other.find(key(0))
    assert place is not None
    assert same(other.get(key(0), *place), 0)
    other.refresh()  # writes down the use
    assert [mark for mark in names(store) if mark.endswith(".used")] == [f"{place[0]}.00000018.used"]
    clock[0] += HOUR
    assert opened().add(parcel(3), 1), "another server, which learns of the use from the listing"
    left = opened()
    assert [left.find(key(number)) is not None for number in range(4)] == [True, False, True, True]
    assert left.nbytes == 3 * size
    place = one.find(key(1))
    assert place is not None
    assert one.get(key(1), *place) is None, "gone meanwhile: a miss"
    assert one.find(key(1)) is None
    assert not one.add(b"x" * (3 * size + 1), 1), "larger than all there is"


def test_the_budget_holds_after_every_step(make: Make, tmp_path: Path) -> None:
    cache = make(LocalStore(tmp_path / "small"), 4000)
    for number in range(60):
        cache.put(key(number), value(number, number % 40))
        cache.flush()
        assert sum(item.size for item in LocalStore(tmp_path / "small").list()) <= 4000
    assert cache.failures == 0
    assert same(cache.get(key(59)), 59, 19)


def test_what_waits_is_bounded(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Faulty(LocalStore(tmp_path))
    store.gate.clear()
    monkeypatch.setattr(bucket, "WAITING_BYTES", 1000)
    cache = make(store)
    for number in range(50):
        cache.put(key(number), value(number))
    assert cache.dropped == 50 - 1000 // 128
    store.gate.set()
    cache.flush()
    assert [same(cache.get(key(number)), number) for number in range(50)] == [True] * 7 + [False] * 43


def test_a_store_that_is_down_is_an_empty_cache(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Faulty(LocalStore(tmp_path))
    cache = make(store)
    cache.put(key(1), value(1))
    cache.flush()
    store.is_down = True
    with caplog.at_level(logging.INFO):
        for number in range(5):
            assert cache.get(key(1)) is None
            cache.put(key(10 + number), value(10 + number))
        cache.flush()
        asked = store.asked
        assert key(1) not in cache, "it is left alone for a while"
        assert (cache.failures, cache.dropped) == (1, 5)
        assert [record.message for record in caplog.records] == [
            f"feature cache {store.uri}: the store does not answer. Look whether it runs. "
            "It is tried again now and then; no request needs it."
        ]
        store.is_down = False
        monkeypatch.setattr(BucketCache, "_rests", False)
        assert same(cache.get(key(1)), 1)
        assert store.asked == asked + 1
    assert caplog.records[-1].message == f"feature cache {store.uri} works again"


def test_entries_wait_for_others_but_not_for_long(make: Make, tmp_path: Path) -> None:
    cache = make(LocalStore(tmp_path / "soon"), linger_seconds=0.0)
    cache.put(key(1), value(1))
    turn = threading.Event()
    for _ in range(10_000):
        if key(1) in cache:
            break
        turn.wait(0.001)
    assert same(cache.get(key(1)), 1)


def test_it_looks_for_what_others_wrote(make: Make) -> None:
    reader, writer = make(refresh_seconds=0.01), make()
    writer.put(key(1), value(1))
    writer.flush()
    turn = threading.Event()
    for _ in range(10_000):
        if key(1) in reader:
            break
        turn.wait(0.001)
    assert same(reader.get(key(1)), 1)


def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = LocalStore(tmp_path), [0.0]
    writer = Depot(store, BUDGET, lambda: clock[0])
    for number in range(4):
        clock[0] += HOUR
        writer.add(parcel(2 * number, 2 * number + 1), 2)
    monkeypatch.setattr(depot, "MOST_ENTRIES", 5)
    reader = Depot(store, BUDGET)
    reader.refresh()
    assert [reader.find(key(number)) is not None for number in range(8)] == [False] * 4 + [True] * 4
    assert reader.nbytes == writer.nbytes


def test_the_bucket_is_asked_last_and_fills_the_nearer_tiers(make: Make, tmp_path: Path) -> None:
    far = make()
    first = FeatureCache(MemoryCache(10_000), None, far)
    first.put(key(1), value(1))
    first.flush()
    assert first.where(key(1)) == "memory"
    later = FeatureCache(MemoryCache(10_000), DiskCache(tmp_path / "disk", BUDGET), far)
    assert later.where(key(1)) == "bucket"
    assert key(1) not in later
    assert later.get(key(1)) is None, "nobody waits for a network unasked"
    assert same(later.fetch(key(1)), 1)
    assert later.where(key(1)) == "memory"
    later.flush()
    assert FeatureCache(None, later.disk).where(key(1)) == "disk"
    assert far.hits == 1
    assert later.where(key(2)) is None
    assert later.fetch(key(2)) is None
    later.close()


def test_new_records_make_room_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that runs for weeks, and of one that looks what others write."""
    monkeypatch.setattr(depot, "MOST_ENTRIES", 5)
    store, clock = LocalStore(tmp_path), [0.0]
    writer, reader = (Depot(store, BUDGET, lambda: clock[0]) for _ in range(2))
    for number in range(4):
        clock[0] += HOUR
        writer.add(parcel(2 * number, 2 * number + 1), 2)
        reader.refresh()
    for looked in (writer, reader):
        assert [looked.find(key(number)) is not None for number in range(8)] == [False] * 4 + [True] * 4


def test_marks_of_parcels_that_are_gone_are_removed(tmp_path: Path) -> None:
    """One server notes a use while another makes room: of such marks there would be more and more."""
    store = LocalStore(tmp_path)
    looked = Depot(store, BUDGET)
    assert looked.add(parcel(1), 1)
    (name,) = names(store)
    others = [f"{name}.00000018.used", "readme.parcel.txt", "notes.00000018.used"]
    for other in (*others, f"{parcels.new_name(1, 1000.0)}.00000018.used"):
        store.put(other, b"")
    looked.refresh()
    assert names(store) == sorted([name, *others])


def test_without_memory_for_a_parcel_it_is_dropped_and_the_writing_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make()

    def short(*_: object) -> tuple[bytes, int]:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(parcels, "entry_of", short)
        cache.put(key(1), value(1))
        cache.flush()
    assert cache.dropped == 1
    monkeypatch.setattr(BucketCache, "_rests", False)
    cache.put(key(2), value(2))
    cache.flush()
    assert [same(cache.get(key(number)), number) for number in (1, 2)] == [False, True]


def test_gathering_many_small_entries_looks_at_each_a_few_times(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over all that was gathered, anew for each, took a parcel of small entries seconds of a processor."""
    looked = []
    size = bucket._size

    def counted(entry: tuple[bytes, tuple[torch.Tensor, ...]]) -> int:
        looked.append(entry[0])
        return size(entry)

    monkeypatch.setattr(bucket, "_size", counted)
    cache = make()
    for number in range(200):
        cache.put(key(number), value(number))
    cache.flush()
    assert same(cache.get(key(199)), 199)
    assert len(looked) <= 3 * 200
