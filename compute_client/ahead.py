"""Reads what is kept on disk of the batch that comes next, while the training loop works on the present one."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from compute_client.cache import LoaderCache

NAME = "hapi-ahead"

Gathered = tuple[np.ndarray, tuple[torch.Tensor, ...], torch.Tensor]
"""As LoaderCache.gather answers."""


class ReadAhead:
    """Of one pass over a loader: at most one batch ahead, on a thread that begins when it is first of use."""

    def __init__(self, cache: LoaderCache, view: int) -> None:
        self._cache, self._view = cache, view
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[list[int], Future[Gathered]] | None = None

    def begin(self, indices: list[int]) -> None:
        """Begins to read these samples, which come next, unless they are in memory."""
        if self._begun is not None or not self._cache.is_on_disk(indices, self._view):
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, NAME)
        self._begun = indices, self._thread.submit(self._cache.gather, indices, self._view)

    def gather(self, indices: list[int]) -> Gathered:
        """What LoaderCache.gather answers for these samples, perhaps read before."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == indices:
            return begun[1].result()
        return self._cache.gather(indices, self._view)

    def close(self) -> None:
        """Ends the thread after what it reads; waits for it unless called by it, as garbage is collected anywhere."""
        if self._thread is not None:
            self._thread.shutdown(wait=not threading.current_thread().name.startswith(NAME))
