"""After memory ran out: for a while large tensors get memory of their own, so that no hole of the heap is lost on them.

It costs page faults, so it ends once memory has sufficed for some time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hapi.allocator import map_large_apart

CALM_SECONDS = 60.0
"""After so long without running out, freed memory is kept for the next tensors again."""


class Shortage:
    """One per process, as the C library is. Thread-safe."""

    def __init__(
        self, apart: Callable[[bool], object] = map_large_apart, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`apart` tells the C library how to take memory for large tensors."""
        self._apart, self._clock = apart, clock
        self._lock = threading.Lock()
        self._since: float | None = None

    def begin(self) -> None:
        """Memory ran out."""
        with self._lock:
            if self._since is None:
                self._apart(True)
            self._since = self._clock()

    def look(self) -> None:
        """Ends it, if memory has sufficed for long enough. For every batch: costs nothing while there is none."""
        if self._since is None:
            return
        with self._lock:
            if self._since is not None and self._clock() - self._since >= CALM_SECONDS:
                self._since = None
                self._apart(False)


SHORTAGE = Shortage()
"""That of this process."""
