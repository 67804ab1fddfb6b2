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
        self._changes = -1
        self._description = b""
        self._starts = np.zeros(0, np.int64)
        """Where the values of an entry begin that was looked at, in the map; -1 of others."""
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._length = 0
        self._views: dict[tuple[int, int], torch.Tensor] = {}

    def fill(
        self, numbers: np.ndarray, description: bytes, columns: Sequence[torch.Tensor]
    ) -> tuple[np.ndarray | None, list[int]]:
        """Writes the values of the entries with these numbers (n,) into columns of bytes, uint8 (n, bytes); OSError.

        Answers for which it did, bool (n,), or None for all, and the numbers of entries that are damaged. Others are
        described otherwise or were removed; what stands in their rows means nothing.

        PyTorch copies, as it lets go of Python's lock meanwhile: whoever trains needs it.
        """
        self._look(description)
        starts, good, damaged = self._starts[numbers], None, []
        if starts.min() < 0:
            damaged = self._check(numbers[starts < 0], sum(column.shape[1] for column in columns))
            starts = self._starts[numbers]
            good = starts >= 0
            if not good.any():
                return good, damaged
            starts = np.where(good, starts, starts[good][0])
        places, before = torch.from_numpy(starts), 0
        for column in columns:
            size = column.shape[1]
            torch.index_select(self._windows(before, size), 0, places, out=column)
            before += size
        return good, damaged

    def _windows(self, before: int, size: int) -> torch.Tensor:
        """So many bytes of the map from each place on, `before` bytes left out: a row for each place."""
        found = self._views.get((before, size))
        if found is None:
            found = self._bytes.as_strided((len(self._bytes) - before - size + 1, size), (1, 1), before)
            self._views[before, size] = found
        return found

    def _look(self, description: bytes) -> None:
        """Takes over what was added to the pack or removed; another description, or a file that was cut off, makes all
        checks anew."""
        if self._changes != self._pack.changes:
            self._changes = self._pack.changes
            known = self._starts
            self._table = np.frombuffer(bytes(self._pack.records), RECORD)
            self._starts = np.full(len(self._table), -1, np.int64)
            self._starts[: len(known)] = np.where(self._table["length"][: len(known)], known, -1)
        if description != self._description:
            self._description = description
            self._views.clear()
            self._starts[:] = -1
        if self._pack.data_bytes() < self._length:
            self._starts[:] = -1
            self._map_all()

    def _map_all(self) -> None:
        size = self._pack.data_bytes()
        self._map = _map(self._pack.data_descriptor, size) if size else None
        self._bytes = torch.frombuffer(self._map or bytearray(1), dtype=torch.uint8)[:size]
        self._length = size
        self._views.clear()

    def _check(self, numbers: np.ndarray, values_bytes: int) -> list[int]:
        """Looks at entries for the first time; those that are damaged or described otherwise get no start."""
        damaged = []
        records = self._table[numbers]
        if int((records["offset"] + records["length"]).max()) > len(self._bytes):
            self._map_all()
        whole, head = memoryview(self._map or b""), len(self._description)
        for number, record in zip(numbers.tolist(), records, strict=True):
            start, length = int(record["offset"]), int(record["length"])
            entry = whole[start : start + length]
            is_alike = record["description"] == head and length == head + values_bytes
            if len(entry) != length or zlib.crc32(entry) != record["checksum"]:
                damaged.append(number)
            elif is_alike and entry[:head] == self._description:
                self._starts[number] = start + head
        return damaged


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A map of a file that is open for reading. Private, as PyTorch warns of memory that must not be written to."""
    return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
