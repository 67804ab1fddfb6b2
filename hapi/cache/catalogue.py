"""Which entry lies in which parcel: 28 bytes of records and 16 of order per entry."""

from __future__ import annotations

import numpy as np

from hapi.cache.parcels import Place, short


class Catalogue:
    """The records of parcels by name, found by key. Not thread-safe."""

    def __init__(self) -> None:
        self._parcels: dict[str, np.ndarray] = {}
        self._names: list[str] = []
        self._keys = np.zeros(0, np.uint64)
        self._places = np.zeros((0, 2), np.int32)
        self._is_stale = False

    def __contains__(self, name: str) -> bool:
        """Whether a parcel is in it."""
        return name in self._parcels

    def __len__(self) -> int:
        """Entries of all parcels."""
        return sum(map(len, self._parcels.values()))

    def add(self, name: str, records: np.ndarray) -> None:
        """Adds a parcel."""
        self._parcels[name] = records
        self._is_stale = True

    def remove(self, name: str) -> None:
        """Forgets a parcel, if it is there."""
        self._is_stale |= self._parcels.pop(name, None) is not None

    def find(self, key: bytes) -> tuple[str, Place] | None:
        """The parcel and the place of an entry with this key, or (one in 2^64) with one that begins like it."""
        if self._is_stale:
            self._order()
        wanted = np.uint64(short(key))
        position = int(np.searchsorted(self._keys, wanted))
        if position == len(self._keys) or self._keys[position] != wanted:
            return None
        parcel, row = self._places[position]
        name = self._names[parcel]
        record = self._parcels[name][row]
        return name, Place(*(int(record[field]) for field in ("offset", "length", "description", "checksum")))

    def _order(self) -> None:
        self._names = list(self._parcels)
        parts = list(self._parcels.values())
        keys = np.concatenate([part["key"] for part in parts]) if parts else np.zeros(0, np.uint64)
        places = np.empty((len(keys), 2), np.int32)
        places[:, 0] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        places[:, 1] = np.concatenate([np.arange(len(part)) for part in parts]) if parts else 0
        order = np.argsort(keys, kind="stable")
        self._keys, self._places, self._is_stale = keys[order], places[order], False
