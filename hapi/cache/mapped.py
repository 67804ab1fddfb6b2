"""Many entries of a pack at once, through a memory map: without it each would cost a call of the system."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Sequence

import numpy as np

from hapi.cache.packs import RECORD_BYTES, Pack

RECORD = np.dtype(
    [
        ("key", "<u8", (4,)),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("description", "<u4"),
        ("checksum", "<u4"),
        ("zero", "<u4"),
        ("check", "<u4"),
    ]
)
"""As hapi.cache.packs.RECORD."""
assert RECORD.itemsize == RECORD_BYTES


class MappedPack:
    """Reads entries that are described alike. An entry's checksum is looked at once. Not thread-safe.

    The map follows a pack that grows. That a file was cut off is looked for before each reading; a disk that fails
    under a map ends the process, as it does under mapped weights.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._table = np.zeros(0, RECORD)
        self._changes = -1
        self._description = b""
        self._is_checked = np.zeros(0, bool)
        self._map: mmap.mmap | None = None
        self._bytes = memoryview(b"")

    def fill(
        self,
        numbers: np.ndarray,
        keys: np.ndarray,
        description: bytes,
        rows: np.ndarray,
        columns: Sequence[memoryview],
        row_bytes: Sequence[int],
    ) -> tuple[np.ndarray, list[int]]:
        """Writes the values of the entries with these numbers into these rows of the columns; OSError.

        `keys` (n, 4) uint64 and `description` are what an entry must have. `row_bytes`: of a row in each column.
        Answers for which it did, bool (n,), and the numbers of entries that are damaged.
        """
        self._look(description)
        records = self._table[numbers]
        good = (records["key"] == keys).all(axis=1) & (records["description"] == len(description))
        good &= records["length"] == len(description) + sum(row_bytes)
        self._map_until(int((records["offset"] + records["length"])[good].max(initial=0)))
        damaged = self._check(numbers, records, good)
        starts = (records["offset"][good] + len(description)).astype(np.int64)
        is_whole = len(starts) == len(rows) and np.array_equal(rows, np.arange(len(rows)))
        for column, size in zip(columns, row_bytes, strict=True):
            if size and len(starts):
                values = np.frombuffer(column, f"V{size}")
                taken = self._windows(size)[starts]
                if is_whole and len(values) == len(rows):
                    values[:] = taken
                else:
                    values[rows[good]] = taken
            starts += size
        return good, damaged

    def _windows(self, size: int) -> np.ndarray:
        """So many bytes from each place of the map on, as one value: many of them are taken at once."""
        return np.ndarray((len(self._bytes) - size + 1,), f"V{size}", self._bytes, strides=(1,))

    def _look(self, description: bytes) -> None:
        """Takes over what was added to the pack; another description than last time makes all checks anew."""
        if self._changes != self._pack.changes:
            self._changes = self._pack.changes
            checked = self._is_checked
            self._table = np.frombuffer(bytes(self._pack.records), RECORD)
            self._is_checked = np.zeros(len(self._table), bool)
            self._is_checked[: len(checked)] = checked
        if description != self._description:
            self._description = description
            self._is_checked[:] = False

    def _map_until(self, end: int) -> None:
        size = self._pack.data_bytes()
        if end > len(self._bytes) or size < len(self._bytes):
            self._map = mmap.mmap(self._pack.data_descriptor, size, prot=mmap.PROT_READ) if size else None
            self._bytes = memoryview(self._map) if self._map is not None else memoryview(b"")

    def _check(self, numbers: np.ndarray, records: np.ndarray, good: np.ndarray) -> list[int]:
        """Looks at entries for the first time; those that are damaged or described otherwise are no longer good."""
        damaged = []
        ends = records["offset"] + records["length"]
        unknown = good & (~self._is_checked[numbers] | (ends > len(self._bytes)))
        for position in np.flatnonzero(unknown).tolist():
            start, end = int(records["offset"][position]), int(ends[position])
            entry = self._bytes[start:end]
            if len(entry) != end - start or zlib.crc32(entry) != records["checksum"][position]:
                damaged.append(int(numbers[position]))
                good[position] = False
            elif entry[: len(self._description)] != self._description:
                good[position] = False
            else:
                self._is_checked[numbers[position]] = True
        return damaged
