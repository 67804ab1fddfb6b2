"""Features in memory, within a number of bytes; those not used for longest make room."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

ENTRY_BYTES = 800
"""What an entry costs besides its values: key, tuple and tensor objects (measured with CPython 3.11, torch 2.15)."""

Tensors = tuple[torch.Tensor, ...]


class MemoryCache:
    """An LRU of small tuples of tensors, by key. Thread-safe; never holds more than `budget_bytes`.

    What `get` answers is shared with other callers: it must not be written to.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self._entries: OrderedDict[bytes, Tensors] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Keeps host tensors, as copies where they are parts of a larger one; too large an entry is not kept."""
        size = entry_bytes(tensors)
        if size > self.budget_bytes:
            return
        copies = tuple(map(owned, tensors))
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self.nbytes -= entry_bytes(old)
            while self.nbytes + size > self.budget_bytes:
                _, dropped = self._entries.popitem(last=False)
                self.nbytes -= entry_bytes(dropped)
            self._entries[key] = copies
            self.nbytes += size

    def clear(self) -> None:
        """Forgets everything, for example when memory is needed for something better."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries


def entry_bytes(tensors: Tensors) -> int:
    """What an entry is charged."""
    return ENTRY_BYTES + sum(tensor.nbytes for tensor in tensors)


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with memory of its own: a row of a batch would keep the whole batch alive."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor.detach() if whole else tensor.detach().clone(memory_format=torch.contiguous_format)
