"""What one answer has cost since its last message, told to whoever asked: see hapi.wire.work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hapi.wire.work import Work
from storage_server.extraction.mail import Arrival
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.occupancy import Occupancy


class Tally:
    """Belongs to one answer, and to its thread."""

    def __init__(
        self,
        occupancy: Occupancy,
        flow: Flow,
        fair: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`flow` is whose answer it is; `fair` tells its part of the server among the tenants of the moment."""
        self._occupancy, self._flow, self._fair, self._clock = occupancy, flow, fair, clock
        self._last = occupancy.read()
        self._begin()

    def arrived(self, messages: Iterable[Arrival]) -> None:
        """Samples are done."""
        for message in messages:
            if message.error is None and message.failed is None and not message.is_shared:
                self._samples += 1
                self._read_seconds += message.read_seconds
                self._work_seconds += message.work_seconds

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Rows are being encoded; what that takes is told with the next message."""
        began = self._clock()
        with self._occupancy.working({self._flow: 1.0}):
            yield
        self._work_seconds += self._clock() - began

    def take(self) -> Work:
        """All of it since the last time.

        Stages that share processors slow each other down, so their seconds add up to more than passed; what is told is
        scaled to the time in which the server was busy. Reading goes on beside it: what takes longer sets the pace.
        """
        now = self._occupancy.read()
        passed = now.since(self._last)
        worked = math.fsum(passed.worked.values())
        overlap = min(1.0, passed.busy / worked) if worked > 0 else 1.0
        others = 1 - passed.worked.get(self._flow, 0.0) / worked if worked > 0 else 0.0
        left = 1 - others * min(1.0, passed.busy / passed.at) if passed.at > 0 else 1.0
        work = Work(
            samples=self._samples,
            seconds=max(self._read_seconds, self._work_seconds * overlap),
            elapsed=passed.at,
            share=min(1.0, max(self._fair(), left)),
        )
        self._last = now
        self._begin()
        return work

    def _begin(self) -> None:
        self._samples, self._read_seconds, self._work_seconds = 0, 0.0, 0.0
