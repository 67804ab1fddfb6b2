"""What one answer has cost since its last message, told to whoever asked: see hapi.wire.work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hapi.wire.work import Work
from storage_server.extraction.flight import Arrival
from storage_server.scheduling.occupancy import Occupancy

LEAST_ELAPSED = 1e-6


class Tally:
    """Belongs to one answer, and to its thread."""

    def __init__(
        self, occupancy: Occupancy, fair: Callable[[], float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`fair` tells the part of the server that is the tenant's at the moment."""
        self._occupancy, self._fair, self._clock = occupancy, fair, clock
        self._last = occupancy.read()
        self._begin()

    def arrived(self, message: Arrival) -> None:
        """A sample is done."""
        if message.error is None and message.failed is None and not message.is_shared:
            self._samples += 1
            self._read_seconds += message.read_seconds
            self._work_seconds += message.work_seconds

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Rows are being encoded; what that takes is told with the next message."""
        began = self._clock()
        with self._occupancy.working():
            yield
        self._work_seconds += self._clock() - began

    def take(self) -> Work:
        """All of it since the last time.

        Stages that share processors slow each other down, so their seconds add up to more than passed; what is told is
        scaled to the time in which the server was busy. Reading mostly waits, and is told as it is.
        """
        now, last = self._occupancy.read(), self._last
        elapsed, busy, worked = now.at - last.at, now.busy - last.busy, now.worked - last.worked
        overlap = min(1.0, busy / worked) if worked > 0 else 1.0
        work = Work(
            samples=self._samples,
            seconds=self._read_seconds + self._work_seconds * overlap,
            elapsed=max(elapsed, LEAST_ELAPSED),
            busy=min(1.0, busy / elapsed) if elapsed > 0 else 0.0,
            fair=min(1.0, self._fair()),
        )
        self._last = now
        self._begin()
        return work

    def _begin(self) -> None:
        self._samples, self._read_seconds, self._work_seconds = 0, 0.0, 0.0
