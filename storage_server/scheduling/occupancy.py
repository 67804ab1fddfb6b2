"""How busy the server is: the time in which any stage works, beside the sum of what all stages worked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from storage_server.scheduling.fair import Flow


@dataclass(frozen=True)
class Reading:
    """What an Occupancy told at one moment, in seconds since some beginning.

    `worked` for all flows is longer than `busy` where stages work at once: what they share (a processor) makes each
    seem slower.
    """

    at: float
    busy: float
    worked: Mapping[Flow, float]

    def since(self, earlier: Reading) -> Reading:
        """The same between two moments; `at` is then the time between them."""
        worked = {flow: seconds - earlier.worked.get(flow, 0.0) for flow, seconds in self.worked.items()}
        return Reading(self.at - earlier.at, self.busy - earlier.busy, worked)


class Occupancy:
    """Counts work of stages that may overlap. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._busy = 0.0
        self._worked: dict[Flow, float] = {}

    @contextmanager
    def working(self, parts: Mapping[Flow, float]) -> Iterator[None]:
        """One piece of work, and for whom: by flow, the part of its stage that it occupies, as one of n threads does
        1 / n."""
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
                for flow, part in parts.items():
                    self._worked[flow] = self._worked.get(flow, 0.0) + part * (ended - began)

    def read(self) -> Reading:
        """The state of this moment; work that goes on counts as busy already."""
        with self._lock:
            now = self._clock()
            running = now - self._since if self._active else 0.0
            return Reading(now, self._busy + running, dict(self._worked))
