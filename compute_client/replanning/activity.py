"""How busy the client is: the time in which it decodes, computes, or trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Activity:
    """Adds up the time in which anything works, counting it once where several things do. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._seconds = 0.0
        self._trains = False

    @property
    def seconds(self) -> float:
        """So far."""
        with self._lock:
            return self._seconds + (self._clock() - self._since if self._active else 0.0)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Something works for the block."""
        with self._lock:
            self._change(1)
        try:
            yield
        finally:
            with self._lock:
                self._change(-1)

    def trains(self, whether: bool) -> None:
        """The training loop has a batch to work on, or waits for one."""
        with self._lock:
            if whether != self._trains:
                self._trains = whether
                self._change(1 if whether else -1)

    def _change(self, by: int) -> None:
        now = self._clock()
        if self._active:
            self._seconds += now - self._since
        self._since = now
        self._active += by
