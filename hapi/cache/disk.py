"""Features in a folder, within a number of bytes. Several processes may share it; a crash damages nothing."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from hapi.cache import layout
from hapi.cache.mapped import MappedPack
from hapi.cache.packs import DATA, INDEX, PART, RECORD_BYTES, DamagedEntryError, Pack, PackWriter, unlink_pack
from hapi.errors import InputError

log = logging.getLogger(__name__)

PACKS = 64
"""About so many packs make up the budget: space is given back by whole packs, the one unused for longest first."""
USUAL_PACK_BYTES, MOST_PACK_BYTES = 16 * 2**20, 2**30
REFRESH_SECONDS = 5.0
"""How often a miss looks for what other processes wrote, and a full cache for room."""
REST_SECONDS = 300.0
"""For so long a disk that refused is left alone."""
_LOCK = "lock"
_PACK_SHIFT, _ENTRY_MASK = 32, 2**32 - 1
"""A place is one number: that of the pack above that of the entry."""

Tensors = tuple[torch.Tensor, ...]


class DiskCache:
    """Tuples of host tensors by 32-byte key, as plain bytes with checksums. Thread-safe.

    A damaged entry is a miss, and removed. When the disk refuses (full, read-only), it says so once and keeps no more,
    but for a try every few minutes: a disk that was full for an hour is used again.
    The files of the folder never take more than `budget_bytes`, whoever writes there with that budget. About 250 bytes
    of memory per entry are needed to find it.
    """

    def __init__(self, folder: Path, budget_bytes: int, *, keep_used: bool = False) -> None:
        """`keep_used`: packs that this process used make no room for new ones. Right for jobs that come back to all
        their samples in turn, where an LRU that is a bit too small would forget each just before it is needed.

        InputError if the folder cannot be made or read.
        """
        self.folder, self.budget_bytes = folder, budget_bytes
        self.pack_bytes = min(MOST_PACK_BYTES, max(budget_bytes // PACKS, min(USUAL_PACK_BYTES, budget_bytes // 4)))
        self.hits = 0
        self.misses = 0
        self._keep_used = keep_used
        self._packs: dict[Path, Pack] = {}
        self._maps: dict[int, MappedPack] = {}
        self._numbered: list[Pack | None] = []
        self._places: dict[int, int] = {}
        self._unreadable: set[int] = set()
        """Packs of which it was said."""
        self._writer: PackWriter | None = None
        self._lock = threading.RLock()
        self._is_refused = False
        self._rests_until = -REST_SECONDS
        self._looked = self._full_since = -REFRESH_SECONDS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.refresh()
        except OSError as error:
            raise InputError(f"cache directory {folder}: {error.strerror}. Choose another one.") from error

    def get(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, or None. They are the caller's own."""
        with self._lock:
            place = self._find(key)
        if place is None:
            self.misses += 1
            return None
        pack, number = place
        description_bytes, values_bytes = pack.lengths(number)
        head = bytearray(description_bytes)
        values = bytearray(values_bytes)
        try:
            pack.read(number, [head, values])
            if layout.described_bytes(bytes(head)) != values_bytes:  # before memory is taken for what it describes
                raise DamagedEntryError("another length than described")
            tensors = layout.allocate(bytes(head))
        except (DamagedEntryError, ValueError) as error:
            self._drop(pack, number, error)
            self.misses += 1
            return None
        start = 0
        for buffer in layout.buffers(tensors):
            buffer[:] = values[start : start + len(buffer)]
            start += len(buffer)
        self._used(pack)
        return tensors

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """Where the entries of keys (n, 32) uint8 lie: numbers for `read_rows`, -1 where there is none, int64 (n,).

        As far as is known; a number stays that entry's for as long as this object lives, and finds nothing once it is
        gone. Much faster than `in` for one by one.
        """
        wanted = [key.tobytes() for key in keys]
        with self._lock:
            places = self._places_of(wanted)
            if (places < 0).any() and time.monotonic() - self._looked >= REFRESH_SECONDS:
                with contextlib.suppress(OSError):  # what is not found now is a miss
                    self.refresh()
                places = self._places_of(wanted)
        return places

    def read_rows(self, places: np.ndarray, description: bytes, into: Tensors) -> np.ndarray:
        """Reads entries that `locate` found into rows of contiguous host tensors (n, *shape), those of a pack together.

        Answers which entry stands in each row, by its position in `places`, int64 (n,). It is -1 where a row means
        nothing: such an entry is not there any more, or is described otherwise.
        """
        columns = [column.view(len(places), -1).view(torch.uint8) for column in into if column.numel()]
        order, runs = _by_pack(places >> _PACK_SHIFT)
        numbers = places[order] & _ENTRY_MASK
        with self._lock:
            for which, start, end in runs:
                part = [column[start:end] for column in columns]
                good = self._read_from(which, numbers[start:end], description, part)
                if good is not None:
                    order[start:end][~good] = -1
        return order

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Keeps host tensors, unless they are there already, too large for a pack, or the disk does not want them."""
        values = tuple(tensor.detach().contiguous() for tensor in tensors)
        self.put_bytes(key, layout.describe(values), layout.buffers(values))

    def put_bytes(self, key: bytes, description: bytes, values: Sequence[memoryview]) -> None:
        """The same for values that lie in memory as they will on disk."""
        size = len(description) + sum(map(len, values))
        with self._lock:
            if time.monotonic() < self._rests_until or self._find(key) is not None:
                return
            try:
                writer = self._writable(size)
                if writer is not None:
                    writer.append(key, description, values)
                    self._learn(self._packs[writer.path])
                    self._took()
            except OSError as error:
                self._refuse(error)
            except MemoryError:
                self._writer = None  # what it wrote last may be half an entry

    def __contains__(self, key: bytes) -> bool:
        """As far as is known now: what other processes wrote since the last `refresh` is not. Never waits for the disk:
        whoever writes or looks there holds the lock for as long as that takes."""
        return self._known(key) is not None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of the folder's files."""
        return sum(size for _, size in self._sizes())

    def refresh(self) -> None:
        """Looks for what other processes wrote and removed; happens by itself after some time. OSError."""
        with self._lock:
            self._looked = time.monotonic()
            present = set(self.folder.glob(f"*{INDEX}"))
            for path in [path for path in self._packs if path not in present]:
                self._forget(path)
            for path in sorted(present):
                pack = self._packs.get(path) or self._open(path)
                if pack is not None:
                    self._learn(pack)

    def close(self) -> None:
        """Ends writing; what was written stays. It may be used again."""
        with self._lock:
            self._writer = None

    def _find(self, key: bytes) -> tuple[Pack, int] | None:
        found = self._known(key)
        if found is None and time.monotonic() - self._looked >= REFRESH_SECONDS:
            with contextlib.suppress(OSError):  # what is not found now is a miss
                self.refresh()
            found = self._known(key)
        return found

    def _places_of(self, keys: Sequence[bytes]) -> np.ndarray:
        places = [self._places.get(_short(key), -1) for key in keys]
        for row, (place, key) in enumerate(zip(places, keys, strict=True)):
            pack = self._numbered[place >> _PACK_SHIFT] if place >= 0 else None
            if pack is None or pack.key(place & _ENTRY_MASK) != key:
                places[row] = -1
        return np.array(places, np.int64)

    def _read_from(
        self, which: int, numbers: np.ndarray, description: bytes, columns: Sequence[torch.Tensor]
    ) -> np.ndarray | None:
        """Reads entries of one pack into rows of columns: which of them it read, bool (n,), or None for all."""
        pack = self._numbered[which] if which >= 0 else None
        if pack is None:
            self.misses += len(numbers)
            return np.zeros(len(numbers), bool)
        if (mapped := self._maps.get(which)) is None:
            mapped = self._maps[which] = MappedPack(pack)
        try:
            good, damaged = mapped.fill(numbers, description, columns)
        except OSError as error:  # other packs may still be there
            good, damaged = np.zeros(len(numbers), bool), []
            if which not in self._unreadable:
                self._unreadable.add(which)
                log.warning("cache directory %s: %s cannot be read (%s)", self.folder, pack.path.name, error)
        for number in damaged:
            self._drop(pack, number, DamagedEntryError("wrong checksum or length"))
        found = len(numbers) if good is None else int(np.count_nonzero(good))
        self.misses += len(numbers) - found
        self._used(pack, found)
        return good

    def _known(self, key: bytes) -> tuple[Pack, int] | None:
        """Asked without the lock as well: a pack has its records before its entries have places, and keeps them."""
        place = self._places.get(_short(key))
        if place is None:
            return None
        pack, number = self._numbered[place >> _PACK_SHIFT], place & _ENTRY_MASK
        return (pack, number) if pack is not None and pack.key(number) == key else None

    def _open(self, path: Path) -> Pack | None:
        try:
            pack = Pack(path)
        except FileNotFoundError:  # its index or its data: another process removes it
            return None
        except ValueError:
            log.warning("cache directory %s: %s is damaged and removed", self.folder, path.name)
            unlink_pack(path)
            return None
        self._packs[path] = pack
        self._numbered.append(pack)
        return pack

    def _learn(self, pack: Pack) -> None:
        """Notes the entries that were added to a pack."""
        numbers = pack.grow()
        if numbers:
            which = self._numbered.index(pack)
            for number, key in pack.keys(numbers):
                self._places[_short(key)] = which << _PACK_SHIFT | number

    def _forget(self, path: Path) -> None:
        pack = self._packs.pop(path)
        which = self._numbered.index(pack)
        self._maps.pop(which, None)
        self._numbered[which] = None
        self._places = {key: place for key, place in self._places.items() if place >> _PACK_SHIFT != which}

    def _used(self, pack: Pack, count: int = 1) -> None:
        self.hits += count
        if not count:
            return
        with contextlib.suppress(OSError):  # a read-only folder serves as well
            pack.touch()

    def _drop(self, pack: Pack, number: int, error: Exception) -> None:
        log.warning("cache directory %s: a damaged entry is removed (%s)", self.folder, error)
        with self._lock, contextlib.suppress(OSError):
            self._places.pop(_short(pack.key(number)), None)
            pack.remove(number)

    def _writable(self, size: int) -> PackWriter | None:
        """A pack with room for `size` bytes, or None if there cannot be one now."""
        writer = self._writer
        if writer is not None and (writer.process != os.getpid() or writer.path not in self._packs):
            writer = None  # the parent goes on with it, or somebody removed its pack
        if writer is None or not writer.has_room(size):
            writer = self._begin(size)
            self._writer = writer or self._writer
        return writer

    def _begin(self, size: int) -> PackWriter | None:
        if 2 * RECORD_BYTES + size > self.pack_bytes or time.monotonic() - self._full_since < REFRESH_SECONDS:
            return None
        self._writer = None  # its pack is whole, and may make room too
        with self._alone():
            self.refresh()
            if not self._make_room():
                self._full_since = time.monotonic()
                return None
            writer = self._resumed(size) or PackWriter.begin(self.folder, self.pack_bytes)
        pack = self._packs.get(writer.path) or self._open(writer.path)
        if pack is None:
            return None
        pack.is_used = True
        return writer

    def _resumed(self, size: int) -> PackWriter | None:
        """A pack that nobody writes to and that has room, the one used last: each is two open files, in every process
        that uses the folder, and jobs that keep little must not make one each."""
        for path in sorted(self._packs, key=_modified, reverse=True):
            if self._packs[path].limit_bytes <= self.pack_bytes:
                with contextlib.suppress(OSError):
                    writer = PackWriter.resume(self._packs[path])
                    if writer.has_room(size):
                        return writer
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process begins or removes a pack."""
        with open(self.folder / _LOCK, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> bool:
        """Removes packs until another one fits into the budget; False if those in use leave no room."""
        for path in [*self.folder.glob(f"*{PART}"), *self.folder.glob(f"*{DATA}")]:
            if path.suffix == PART or not path.with_suffix(INDEX).exists():
                path.unlink(missing_ok=True)  # of a process that died
        taken: dict[Path, int] = {}
        for path, pack in self._packs.items():
            size = _size(path) + _size(path.with_suffix(DATA))
            taken[path] = max(size, pack.limit_bytes) if pack.is_being_written() else size
        total = sum(taken.values())
        for path in sorted(taken, key=_modified):
            if total + self.pack_bytes <= self.budget_bytes:
                break
            pack = self._packs[path]
            if pack.is_being_written() or (self._keep_used and pack.is_used):
                continue
            pack.unlink()
            self._forget(path)
            total -= taken[path]
        return total + self.pack_bytes <= self.budget_bytes

    def _refuse(self, error: OSError) -> None:
        is_new, self._is_refused, self._writer = not self._is_refused, True, None
        self._rests_until = time.monotonic() + REST_SECONDS
        if is_new:
            log.warning("cache directory %s: %s; no more features are kept there", self.folder, error.strerror)

    def _took(self) -> None:
        """The disk took an entry."""
        if self._is_refused:
            self._is_refused = False
            log.info("cache directory %s: features are kept there again", self.folder)

    def _sizes(self) -> Iterator[tuple[Path, int]]:
        for path in self.folder.iterdir():
            yield path, _size(path)


def _by_pack(packs: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """An order in which entries of the same pack follow one another; each pack, and where its entries begin and end."""
    if not len(packs):
        return np.zeros(0, np.int64), []
    if (packs == packs[0]).all():
        return np.arange(len(packs)), [(int(packs[0]), 0, len(packs))]
    order = np.argsort(packs, kind="stable")
    ordered = packs[order]
    starts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()]
    return order, list(zip(ordered[starts].tolist(), starts, [*starts[1:], len(packs)], strict=True))


def _short(key: bytes) -> int:
    """64 bits of a key: enough to find it; the pack knows it whole."""
    return int.from_bytes(key[:8], "little")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
