"""Many entries of a pack at once, through a memory map: without it each would cost a call of the system."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Sequence

import numpy as np
import torch

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
        self._keys = np.zeros((0, 4), np.uint64)
        self._changes = -1
        self._description = b""
        self._starts = np.zeros(0, np.int64)
        """Where the values of an entry begin that was looked at, in the map; -1 of others."""
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def fill(
        self, numbers: np.ndarray, keys: np.ndarray, description: bytes, columns: Sequence[torch.Tensor]
    ) -> tuple[np.ndarray, list[int]]:
        """Writes the values of the entries with these numbers (n,) into columns of bytes, uint8 (n, bytes); OSError.

        `keys` (n, 4) uint64 and `description` are what an entry must have. Answers for which it wrote them, bool (n,),
        and the numbers of entries that are damaged; what stands in the other rows means nothing.

        PyTorch copies, as it lets go of Python's lock meanwhile: whoever trains needs it.
        """
        self._look(description)
        self._map_until(int((self._table["offset"][numbers] + self._table["length"][numbers]).max(initial=0)))
        good = (self._keys[numbers] == keys).all(axis=1)
        damaged = self._check(numbers, good, sum(column.shape[1] for column in columns))
        starts = self._starts[numbers]
        good &= starts >= 0
        if good.any():
            places = torch.from_numpy(np.where(good, starts, starts[good][0]))
            for column in columns:
                torch.index_select(self._windows(column.shape[1]), 0, places, out=column)
                places = places + column.shape[1]
        return good, damaged

    def _windows(self, size: int) -> torch.Tensor:
        """So many bytes from each place of the map on, a row for each."""
        return self._bytes.as_strided((len(self._bytes) - size + 1, size), (1, 1))

    def _look(self, description: bytes) -> None:
        """Takes over what was added to the pack; another description than last time makes all checks anew."""
        if self._changes != self._pack.changes:
            self._changes = self._pack.changes
            known = self._starts
            self._table = np.frombuffer(bytes(self._pack.records), RECORD)
            self._keys = np.ascontiguousarray(self._table["key"])
            self._starts = np.full(len(self._table), -1, np.int64)
            self._starts[: len(known)] = known
        if description != self._description:
            self._description = description
            self._starts[:] = -1

    def _map_until(self, end: int) -> None:
        size = self._pack.data_bytes()
        if size < len(self._bytes):
            self._starts[:] = -1
        if end > len(self._bytes) or size < len(self._bytes):
            self._map = _map(self._pack.data_descriptor, size) if size else None
            self._bytes = torch.frombuffer(self._map or bytearray(1), dtype=torch.uint8)[:size]

    def _check(self, numbers: np.ndarray, good: np.ndarray, values_bytes: int) -> list[int]:
        """Looks at entries for the first time; those that are damaged or described otherwise get no start."""
        damaged = []
        whole = memoryview(self._map or b"")
        for number in numbers[good & (self._starts[numbers] < 0)].tolist():
            record = self._table[number]
            start, end = int(record["offset"]), int(record["offset"] + record["length"])
            entry = whole[start:end]
            head = len(self._description)
            is_alike = record["description"] == head and record["length"] == head + values_bytes
            if len(entry) != end - start or zlib.crc32(entry) != record["checksum"]:
                damaged.append(number)
            elif is_alike and entry[:head] == self._description:
                self._starts[number] = start + head
        return damaged


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A map of a file that is open for reading. Private, as PyTorch warns of memory that must not be written to."""
    return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
