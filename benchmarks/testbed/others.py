"""What others do on the processors of a testbed while something is measured there: how far a reading can be trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil

from benchmarks.testbed.testbed import Testbed

T = TypeVar("T")

DISTURBED, TRIES = 0.1, 3
"""What is measured is measured again, so often at most, where others had so much of a host's processors."""


@dataclass(frozen=True)
class Usage:
    """Of one stretch of time.

    Attributes:
        storage_seconds, compute_seconds: of processors, by the processes of either host.
        others: part of a host's processors that everybody else had, of the host where that was more; 0 to 1. Work at a
            low priority does not count: it gives way.
        low: part of all processors that went to work at a low priority. It gives way, but not at once, and takes
            memory's time and caches: it may disturb as well. 0 where this process has such a priority itself.
    """

    storage_seconds: float
    compute_seconds: float
    others: float
    low: float = 0.0


@dataclass(frozen=True)
class Worked:
    """Seconds that processors have worked so far: each at ordinary priority, and all at a low one."""

    ordinary: Sequence[float]
    low: float = 0.0


@dataclass(frozen=True)
class _Moment:
    at: float
    worked: Worked
    storage: float
    compute: float


class Watcher:
    """Tells what happened on the processors of a testbed since a moment."""

    def __init__(
        self, bed: Testbed, *, read: Callable[[], Worked] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bed, self._read, self._clock = bed, read or worked_seconds, clock

    def now(self) -> _Moment:
        """A moment to look back to."""
        storage, compute = self._of_hosts()
        return _Moment(self._clock(), self._read(), storage, compute)  # ours first: others never get too much of it

    def since(self, before: _Moment) -> Usage:
        """What happened from then to now."""
        worked, at = self._read(), self._clock()
        storage, compute = self._of_hosts()
        elapsed = max(1e-9, at - before.at)
        seconds = [now - then for now, then in zip(worked.ordinary, before.worked.ordinary, strict=True)]
        ours = {"storage": storage - before.storage, "compute": compute - before.compute}
        others = _others(self._parts(ours, len(seconds)), seconds, elapsed)
        low = (worked.low - before.worked.low) / (len(seconds) * elapsed)
        return Usage(ours["storage"], ours["compute"], others, min(1.0, max(0.0, low)))

    def _of_hosts(self) -> tuple[float, float]:
        return self._bed.cpu_seconds(self._bed.storage), self._bed.cpu_seconds(self._bed.compute)

    def _parts(self, ours: Mapping[str, float], count: int) -> list[tuple[Sequence[int], float]]:
        """Processors that belong together, and what was ours on them; hosts that share all are one."""
        bed = self._bed
        if not bed.storage.cpus or not bed.compute.cpus:
            return [(range(count), sum(ours.values()))]
        return [(bed.storage.cpus, ours["storage"]), (bed.compute.cpus, ours["compute"])]


def least_disturbed(watcher: Watcher, measure: Callable[[], T]) -> tuple[T, Usage, int]:
    """Measures again while others had much of the processors; the least disturbed answer, its usage, and the tries."""
    found: list[tuple[T, Usage]] = []
    while len(found) < TRIES and (not found or found[-1][1].others > DISTURBED):
        before = watcher.now()
        answer = measure()
        found.append((answer, watcher.since(before)))
    return *min(found, key=lambda one: one[1].others), len(found)


def worked_seconds() -> Worked:
    """Since the machine started: in programs, in the kernel for them, and in other virtual machines beside this one.

    Where this process has a low priority itself, such work counts as ordinary.
    """
    is_low = hasattr(os, "nice") and os.nice(0) > 0
    times = psutil.cpu_times(percpu=True)
    low = [getattr(one, "nice", 0.0) for one in times]
    ordinary = [one.user + one.system + getattr(one, "steal", 0.0) for one in times]
    if is_low:
        return Worked([sum(pair) for pair in zip(ordinary, low, strict=True)])
    return Worked(ordinary, sum(low))


def _others(parts: Sequence[tuple[Sequence[int], float]], seconds: Sequence[float], elapsed: float) -> float:
    shares = [
        (sum(seconds[cpu] for cpu in cpus if cpu < len(seconds)) - ours) / (len(cpus) * elapsed) for cpus, ours in parts
    ]
    return min(1.0, max([0.0, *shares]))
