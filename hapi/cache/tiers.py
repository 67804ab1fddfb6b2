"""A memory tier before a disk tier, and a bucket behind both, as one cache."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Literal

import torch

from hapi.cache.bucket import BucketCache
from hapi.cache.disk import DiskCache
from hapi.cache.memory import MemoryCache, entry_bytes, owned

log = logging.getLogger(__name__)

WAITING_BYTES = 32 * 2**20
"""Most bytes that wait to be written; what comes beyond is kept in memory only."""

Tensors = tuple[torch.Tensor, ...]
Tier = Literal["memory", "disk", "bucket"]


class FeatureCache:
    """What is asked for is looked for in memory, then on disk; what is found on disk is kept in memory again.

    A bucket is asked by `fetch` only, for which the caller has a thread that may wait for a network; what is found
    there is kept in the nearer tiers. Each tier may be missing. Thread-safe, as they are. What is answered must not be
    written to. `put` does not wait for disk and bucket: threads of their own write, and a disk that is slower than the
    features come gets a part.
    """

    def __init__(
        self, memory: MemoryCache | None, disk: DiskCache | None = None, bucket: BucketCache | None = None
    ) -> None:
        self.memory, self.disk, self.bucket = memory, disk, bucket
        self._waiting: queue.Queue[tuple[bytes, Tensors] | None] = queue.Queue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, or None."""
        if self.memory is not None and (found := self.memory.get(key)) is not None:
            return found
        if self.disk is None or (found := self.disk.get(key)) is None:
            return None
        if self.memory is not None:
            self.memory.put(key, found)
        return found

    def fetch(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, in the bucket at the last, or None."""
        found = self.get(key)
        if found is None and self.bucket is not None and (found := self.bucket.get(key)) is not None:
            self._put_near(key, found)
        return found

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Keeps host tensors in all tiers; on disk and in the bucket after a while."""
        self._put_near(key, tensors)
        if self.bucket is not None:
            self.bucket.put(key, tuple(map(owned, tensors)))

    def where(self, key: bytes) -> Tier | None:
        """The nearest tier that probably has it, as far as is known without asking a disk or a network."""
        if self.memory is not None and key in self.memory:
            return "memory"
        if self.disk is not None and key in self.disk:
            return "disk"
        return "bucket" if self.bucket is not None and key in self.bucket else None

    def _put_near(self, key: bytes, tensors: Tensors) -> None:
        if self.memory is not None:
            self.memory.put(key, tensors)
        if self.disk is None or key in self.disk:
            return
        size = entry_bytes(tensors)
        with self._lock:
            if self._waiting_bytes + size > WAITING_BYTES or not self._has_writer():
                return
            self._waiting_bytes += size
        self._waiting.put((key, tuple(map(owned, tensors))))

    def _has_writer(self) -> bool:
        """Whether a thread writes. One is begun if there is none, unless memory is too short for its stack just now."""
        if self._thread is None:
            thread = threading.Thread(target=self._write, name="hapi-cache-write", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def __contains__(self, key: bytes) -> bool:
        """Whether `get` would probably find it; never waits for a disk."""
        return (self.memory is not None and key in self.memory) or (self.disk is not None and key in self.disk)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.memory.nbytes if self.memory is not None else 0

    @property
    def hits(self) -> int:
        """Questions that some tier answered."""
        return sum(tier.hits for tier in (self.memory, self.disk, self.bucket) if tier is not None)

    @property
    def misses(self) -> int:
        """Questions that neither memory nor disk answered."""
        last = self.disk if self.disk is not None else self.memory
        return last.misses if last is not None else 0

    def flush(self) -> None:
        """Waits until everything that waits is on disk and in the bucket."""
        self._waiting.join()
        if self.bucket is not None:
            self.bucket.flush()

    def close(self) -> None:
        """Writes what waits, and ends the threads; memory and disk may be used again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()
        if self.disk is not None:
            self.disk.close()
        if self.bucket is not None:
            self.bucket.close()

    def _write(self) -> None:
        assert self.disk is not None
        while True:
            item = self._waiting.get()
            try:
                if item is None:
                    return
                self.disk.put(*item)
            except Exception:  # without this thread all that comes would wait for ever
                log.exception("features could not be written to %s", self.disk.folder)
            finally:
                if item is not None:
                    with self._lock:
                        self._waiting_bytes -= entry_bytes(item[1])
                del item
                self._waiting.task_done()
