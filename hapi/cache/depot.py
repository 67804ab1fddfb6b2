"""Parcels in a store, within a number of bytes, shared with whoever uses the same prefix of it.

Listings tell no time of last use that all stores have, so it is written down: beside a parcel lies an empty object
whose name holds the hour in which a server last found something in it. The parcel used least recently makes room.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from hapi.cache import parcels
from hapi.cache.catalogue import Catalogue
from hapi.cache.parcels import Place, Tensors
from hapi.data.stores import ErasableStore
from hapi.errors import ObjectNotFoundError

HOUR = 3600
"""Seconds; a use is written down once in so long."""
MOST_ENTRIES = 2**21
"""Entries that are looked up, some 90 MB; what lies beyond, in the parcels used least recently, is not found."""
MOST_STRAYS = 256
"""Marks of parcels that are gone, removed at a time."""
_MARK = re.compile(r"(.+\.parcel)\.(\d{8})\.used")


@dataclass
class _Parcel:
    """One that was listed. `used`: seconds after 1970 of its last use, as far as known; `marks`: objects that tell."""

    size: int
    count: int
    used: float
    marks: tuple[str, ...] = ()


class Depot:
    """Entries below the root of a store. Thread-safe; every method but `find` may block on the store.

    All raise the store's errors. Nothing but objects of its own names is ever read or removed.
    """

    def __init__(self, store: ErasableStore, budget_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self.budget_bytes = budget_bytes
        self._parcels: dict[str, _Parcel] = {}
        self._catalogue = Catalogue()
        self._unreadable: set[str] = set()
        self._touched: set[str] = set()
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return self._store.uri

    @property
    def nbytes(self) -> int:
        """Bytes of all parcels, as last listed."""
        with self._lock:
            return sum(parcel.size for parcel in self._parcels.values())

    def find(self, key: bytes) -> tuple[str, Place] | None:
        """Where an entry lies, as far as is known; asks nobody."""
        with self._lock:
            return self._catalogue.find(key)

    def refresh(self) -> None:
        """Lists the store, reads the records of parcels that are new, and writes down which were used."""
        found, marks = self._listed()
        strays = []
        for name, mark in marks:
            if name in found:
                found[name].used = max(found[name].used, HOUR * float(mark.split(".")[-2]))
                found[name].marks += (mark,)
            else:
                strays.append(mark)
        recent = sorted(found, key=lambda name: -found[name].used)
        entries = list(accumulate(found[name].count for name in recent))
        within = bisect_right(entries, MOST_ENTRIES)
        with self._lock:
            for name in [name for name in self._parcels if name not in found]:
                self._forget(name)
            self._parcels = found
            self._unreadable &= found.keys()
            for name in recent[within:]:
                self._catalogue.remove(name)
        for name in recent[:within]:
            self._learn(name, found[name])
        self._mark_used()
        for mark in strays[:MOST_STRAYS]:  # written by one server while another removed the parcel
            self._store.delete(mark)

    def get(self, key: bytes, name: str, place: Place) -> Tensors | None:
        """The entry at a place that `find` gave; None if it is gone, or another key's. ValueError if it is damaged."""
        try:
            data = self._store.get(name, place.offset, place.length)
        except ObjectNotFoundError:  # another server made room
            with self._lock:
                self._forget(name)
            return None
        try:
            tensors = parcels.unwrap(key, data, place)
        except ValueError:
            with self._lock:
                self._catalogue.remove(name)  # what else is in it is not trusted either
                self._unreadable.add(name)
            raise
        with self._lock:
            self._touched.add(name)
        return tensors

    def add(self, data: bytes, count: int) -> bool:
        """Puts a parcel of `count` entries; whether the budget had room, or could make it."""
        if not self._make_room(len(data)):
            return False
        name = parcels.new_name(count, self._clock())
        self._store.put(name, data)
        records = parcels.read_index(data[: parcels.index_bytes(count)], count, len(data))
        with self._lock:
            self._parcels[name] = _Parcel(len(data), count, self._clock())
            self._catalogue.add(name, records)
            self._bound_records()
        return True

    def close(self) -> None:
        """Gives connections back."""
        self._store.close()

    def _listed(self) -> tuple[dict[str, _Parcel], list[tuple[str, str]]]:
        found: dict[str, _Parcel] = {}
        marks: list[tuple[str, str]] = []
        try:
            for item in self._store.list():
                parts = parcels.name_parts(item.key)
                if parts is not None:
                    found[item.key] = _Parcel(item.size, parts[1], float(parts[0]))
                elif (mark := _MARK.fullmatch(item.key)) is not None:
                    marks.append((mark[1], item.key))
        except ObjectNotFoundError:
            if not self._store.uri.startswith("file:"):  # a folder is made by the first parcel; a bucket is not
                raise
        return found, marks

    def _learn(self, name: str, parcel: _Parcel) -> None:
        """Reads the records of a parcel, once."""
        with self._lock:
            if name in self._catalogue or name in self._unreadable:
                return
        try:
            head = self._store.get(name, 0, min(parcel.size, parcels.index_bytes(parcel.count)))
            records = parcels.read_index(head, parcel.count, parcel.size)
        except ObjectNotFoundError:
            return
        except ValueError:
            with self._lock:
                self._unreadable.add(name)  # not asked again; it goes when room is made
            return
        with self._lock:
            if name in self._parcels:
                self._catalogue.add(name, records)

    def _bound_records(self) -> None:
        """Records of the parcels used least recently make room for new ones. Under the lock."""
        if len(self._catalogue) > MOST_ENTRIES:
            for name in sorted(self._parcels, key=lambda name: self._parcels[name].used):
                if len(self._catalogue) <= MOST_ENTRIES:
                    break
                self._catalogue.remove(name)

    def _mark_used(self) -> None:
        now = self._clock()
        with self._lock:
            touched, self._touched = self._touched, set()
        for name in touched:
            with self._lock:
                parcel = self._parcels.get(name)
                if parcel is None or now - parcel.used < HOUR:
                    continue
                old, parcel.used = parcel.marks, now
                parcel.marks = (f"{name}.{int(now) // HOUR:08d}.used",)
            self._store.put(parcel.marks[0], b"")
            for mark in old:
                if mark not in parcel.marks:
                    self._store.delete(mark)

    def _make_room(self, size: int) -> bool:
        """Removes parcels until `size` more bytes fit. Others may write meanwhile: their parcels count when listed."""
        if size > self.budget_bytes:
            return False
        if self.nbytes + size > self.budget_bytes:
            self.refresh()  # what others used and removed
        with self._lock:
            oldest = sorted(self._parcels, key=lambda name: self._parcels[name].used)
        for name in oldest:
            if self.nbytes + size <= self.budget_bytes:
                return True
            with self._lock:
                parcel = self._parcels.get(name)
                self._forget(name)
            self._store.delete(name)
            for mark in parcel.marks if parcel is not None else ():
                self._store.delete(mark)
        return self.nbytes + size <= self.budget_bytes

    def _forget(self, name: str) -> None:
        self._parcels.pop(name, None)
        self._catalogue.remove(name)
        self._unreadable.discard(name)
