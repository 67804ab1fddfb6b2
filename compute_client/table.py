"""Finished features in one piece of memory per output, so that a batch of them is one gather."""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

Tensors = tuple[torch.Tensor, ...]
Kinds = Sequence[tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each output."""
Fetch = Callable[[np.ndarray, Tensors], np.ndarray]
"""Writes the rows with these numbers (n,) into (n, *shape) per output, in any order; answers which of them stands in
each row, by its position, int64 (n,), and -1 where none does."""
GUEST_BYTES = 4 * 2**20
"""Of rows that are fetched at once, beside those that are kept."""


class FeatureTable:
    """Rows of features, found by their number (0 to rows - 1). What came first stays; what does not fit is not kept.

    Nothing makes room: a training job returns to all of its rows once per epoch, and of those that fit, each is then
    found each time, where an LRU would drop many just before they are needed (as "MinIO" of Mohan et al., "Analyzing
    and Mitigating Data Stalls in DNN Training", VLDB 2021). Thread-safe.
    """

    def __init__(self, rows: int, budget_bytes: int) -> None:
        """Memory is taken as rows come, up to `budget_bytes`, of which 8 bytes per row number find the rows."""
        self._slots = np.full(rows, -1, np.int64)
        self.budget_bytes = budget_bytes - self._slots.nbytes
        self._columns: Tensors = ()
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []
        self._used = 0
        self._capacity = 0
        self._guests = 0
        """Rows behind those that are kept, for what is fetched: memory that nothing lies in for longer than a call."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._used

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 as long as there is none."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._kinds)

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return self._slots.nbytes + self._used * self.row_bytes

    @property
    def is_full(self) -> bool:
        return bool(self._kinds) and self._used >= self._capacity

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Per row number, int64 (n,), whether it is here: bool (n,). What is here stays."""
        return self._slots[numbers] >= 0

    def gather(self, numbers: np.ndarray) -> Tensors:
        """Rows that are here, (n, *shape) per output, in memory of the caller's own."""
        slots = torch.from_numpy(self._slots[numbers])
        return tuple(torch.index_select(column, 0, slots) for column in self._columns)

    def slots(self, numbers: np.ndarray) -> np.ndarray:
        """Where these rows are, int64 (n,); -1 for those that are not here."""
        return self._slots[numbers]

    def gather_with(
        self, numbers: np.ndarray, slots: np.ndarray, fetch: Fetch, kinds: Kinds
    ) -> tuple[np.ndarray, Tensors]:
        """Rows of which some are not here, but can be fetched: positions in `numbers`, ascending, of those that could
        be had, and their features, (n, *shape) per output of these dtypes and shapes, the caller's own.

        `slots` is what `slots()` answered for them, and written to. What is fetched of a few MiB at a time becomes a
        guest of the table, so that all is put in order by one copy.
        """
        count = len(numbers)
        rows = tuple(torch.empty((count, *shape), dtype=dtype) for dtype, shape in kinds)
        if slots.max() < 0:
            return in_order(fetch(numbers, rows), rows)
        with self._lock:
            for start in range(0, count, self._guests):
                end = min(count, start + self._guests)
                self._invite(numbers[start:end], slots[start:end], fetch, tuple(row[start:end] for row in rows))
        there = np.flatnonzero(slots >= 0)
        if len(there) < count:
            rows = tuple(row.index_select(0, torch.from_numpy(there)) for row in rows)
        return there, rows

    def _invite(self, numbers: np.ndarray, slots: np.ndarray, fetch: Fetch, into: Tensors) -> None:
        """Fetches the rows whose slot is -1 behind all others, writes down their slots, and gathers all of them."""
        absent = np.flatnonzero(slots < 0)
        if not len(absent):
            self._select(slots, into)
            return
        first, last = self._capacity, self._capacity + len(absent)
        found = fetch(numbers[absent], tuple(column[first:last] for column in self._columns))
        if found.min() >= 0:
            slots[absent[found]] = np.arange(first, last)
            self._select(slots, into)
        else:
            good = found >= 0
            slots[absent[found[good]]] = first + np.flatnonzero(good)
            self._select(np.maximum(slots, 0), into)

    def _select(self, slots: np.ndarray, into: Tensors) -> None:
        places = torch.from_numpy(slots)
        for column, rows in zip(self._columns, into, strict=True):
            torch.index_select(column, 0, places, out=rows)

    def put(self, numbers: np.ndarray, features: Tensors) -> int:
        """Keeps host tensors (n, *shape) under these numbers, as far as there is room; answers how many are new."""
        with self._lock:
            if not self._kinds and len(numbers):
                self._begin([(feature.shape[1:], feature.dtype) for feature in features])
            if self._kinds != [(feature.shape[1:], feature.dtype) for feature in features]:
                return 0
            new = np.flatnonzero(self._slots[numbers] < 0)[: self._capacity - self._used]
            _, first = np.unique(numbers[new], return_index=True)
            new = new[np.sort(first)]
            slots = np.arange(self._used, self._used + len(new))
            rows, places = torch.from_numpy(new), torch.from_numpy(slots)
            for column, feature in zip(self._columns, features, strict=True):
                column.index_copy_(0, places, feature.index_select(0, rows))
            self._used += len(new)
            self._slots[numbers[new]] = slots  # last: others may gather meanwhile
            return len(new)

    def clear(self) -> None:
        """Forgets every row; not while another thread gathers."""
        with self._lock:
            self._slots.fill(-1)
            self._columns, self._kinds, self._used, self._capacity, self._guests = (), [], 0, 0, 0

    def _begin(self, kinds: list[tuple[torch.Size, torch.dtype]]) -> None:
        self._kinds = kinds
        self._capacity = max(0, min(len(self._slots), self.budget_bytes // max(1, self.row_bytes)))
        self._guests = max(1, GUEST_BYTES // max(1, self.row_bytes))
        self._columns = tuple(_reserve(self._capacity + self._guests, shape, dtype) for shape, dtype in kinds)


def in_order(positions: np.ndarray, rows: Tensors) -> tuple[np.ndarray, Tensors]:
    """Rows by their positions, those at -1 left out: the positions, ascending, and the rows."""
    if (positions == np.arange(len(positions))).all():
        return positions, rows
    order = np.argsort(positions, kind="stable")[np.count_nonzero(positions < 0) :]
    chosen = torch.from_numpy(order)
    return positions[order], tuple(row.index_select(0, chosen) for row in rows)


def _reserve(rows: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Zeros (rows, *shape) that take memory only where they are written, and give it back when they are dropped."""
    size = rows * math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty((rows, *shape), dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).reshape(rows, *shape)
