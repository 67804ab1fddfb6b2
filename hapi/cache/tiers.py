"""A memory tier before a disk tier, as one cache."""

from __future__ import annotations

import torch

from hapi.cache.disk import DiskCache
from hapi.cache.memory import MemoryCache

Tensors = tuple[torch.Tensor, ...]


class FeatureCache:
    """What is asked for is looked for in memory, then on disk; what is found on disk is kept in memory again.

    Either tier may be missing. Thread-safe, as they are. What `get` answers must not be written to. `put` writes to
    the disk before it returns: call it where waiting for a disk does no harm.
    """

    def __init__(self, memory: MemoryCache | None, disk: DiskCache | None = None) -> None:
        self.memory, self.disk = memory, disk

    def get(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, or None."""
        if self.memory is not None and (found := self.memory.get(key)) is not None:
            return found
        if self.disk is None or (found := self.disk.get(key)) is None:
            return None
        if self.memory is not None:
            self.memory.put(key, found)
        return found

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Keeps host tensors in both tiers."""
        if self.memory is not None:
            self.memory.put(key, tensors)
        if self.disk is not None:
            self.disk.put(key, tensors)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.memory.nbytes if self.memory is not None else 0

    @property
    def hits(self) -> int:
        """Questions that either tier answered."""
        return (self.memory.hits if self.memory else 0) + (self.disk.hits if self.disk else 0)

    @property
    def misses(self) -> int:
        """Questions that no tier answered."""
        last = self.disk if self.disk is not None else self.memory
        return last.misses if last is not None else 0

    def close(self) -> None:
        """Ends writing to disk."""
        if self.disk is not None:
            self.disk.close()
