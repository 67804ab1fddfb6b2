"""Reads what is kept on disk of the batch that comes next, while the training loop works on the present one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from compute_client.cache import Indices, LoaderCache

NAME = "hapi-ahead"
LEAST_WAIT_SECONDS = 1e-3
"""Batches that wait for the disk less than this are read when they are wanted. What the system's file cache has takes
0.2 ms for 256 rows of 5 kB, and another thread would take the processor and Python's lock from whoever trains."""

Gathered = tuple[np.ndarray, tuple[torch.Tensor, ...], torch.Tensor]
"""As LoaderCache.gather answers."""


def _waited() -> float:
    """Seconds that this thread was not on a processor, from some time on."""
    return time.perf_counter() - time.thread_time()


class ReadAhead:
    """Of one pass over a loader: at most one batch ahead, on a thread that begins when it is first of use."""

    def __init__(self, cache: LoaderCache, view: int, waited: Callable[[], float] = _waited) -> None:
        """`waited`: seconds for which the calling thread was not on a processor so far."""
        self._cache, self._view, self._waited = cache, view, waited
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[Indices, Future[Gathered]] | None = None
        self._pays = False

    def begin(self, indices: Indices) -> None:
        """Begins to read these samples, which come next, unless they are in memory or the last ones came at once."""
        if not self._pays or self._begun is not None or not self._cache.is_on_disk(indices, self._view):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, NAME)
        self._begun = indices, self._thread.submit(self._gather, indices)

    def gather(self, indices: Indices) -> Gathered:
        """What LoaderCache.gather answers for these samples, perhaps read before."""
        begun, self._begun = self._begun, None
        if begun is not None and np.array_equal(begun[0], indices):
            return begun[1].result()
        return self._gather(indices)

    def close(self) -> None:
        """Ends the thread after what it reads; waits for it unless called by it, as garbage is collected anywhere."""
        if self._thread is not None:
            self._thread.shutdown(wait=not threading.current_thread().name.startswith(NAME))

    def _gather(self, indices: Indices) -> Gathered:
        before = self._waited()
        gathered = self._cache.gather(indices, self._view)
        self._pays = self._waited() - before >= LEAST_WAIT_SECONDS
        return gathered
