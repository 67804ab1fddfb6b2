"""Finished features in one piece of memory per output, so that a batch of them is one gather."""

from __future__ import annotations

import math
import mmap
import threading

import numpy as np
import torch

Tensors = tuple[torch.Tensor, ...]


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
            self._columns, self._kinds, self._used, self._capacity = (), [], 0, 0

    def _begin(self, kinds: list[tuple[torch.Size, torch.dtype]]) -> None:
        self._kinds = kinds
        self._capacity = max(0, min(len(self._slots), self.budget_bytes // max(1, self.row_bytes)))
        self._columns = tuple(_reserve(self._capacity, shape, dtype) for shape, dtype in kinds)


def _reserve(rows: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Zeros (rows, *shape) that take memory only where they are written, and give it back when they are dropped."""
    size = rows * math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty((rows, *shape), dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).reshape(rows, *shape)
