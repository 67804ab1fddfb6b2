"""How busy the server is: the time in which any stage works, beside the sum of what all stages worked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """What an Occupancy told at one moment, in seconds since some beginning.

    `worked` is longer than `busy` where stages work at once: what they share (a processor) makes each seem slower.
    """

    at: float
    busy: float
    worked: float


class Occupancy:
    """Counts work of stages that may overlap. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._busy = 0.0
        self._worked = 0.0

    @contextmanager
    def working(self, weight: float = 1.0) -> Iterator[None]:
        """One piece of work; `weight` is the part of its stage that it occupies, as one of n threads does 1 / n."""
        with self._lock:
            began = self._clock()
            if not self._active:
                self._since = began
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                ended = self._clock()
                self._active -= 1
                if not self._active:
                    self._busy += ended - self._since
                self._worked += weight * (ended - began)

    def read(self) -> Reading:
        """The state of this moment; work that goes on counts as busy already."""
        with self._lock:
            now = self._clock()
            running = now - self._since if self._active else 0.0
            return Reading(now, self._busy + running, self._worked)
