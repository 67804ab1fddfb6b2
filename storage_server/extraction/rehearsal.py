"""A compiled prefix made ready before its first batch: loaded, run with batches of several sizes, and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

from hapi.cancel import Cancel
from profiler.memory import spec_input
from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.patience import attempt
from storage_server.extraction.sizing import curve_name, seconds_by_size
from storage_server.memory.workspaces import Workspaces
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.knee import LONG_SECONDS, START, power_of_two
from storage_server.scheduling.rates import Rates
from storage_server.scheduling.remembered import Remembered

DOUBLINGS = 3
"""Sizes that are tried: from where batch sizes are explored on, as many as tell whether larger ones gain anything."""

MOST_TURNS, ENOUGH_SECONDS = 4, 0.5
"""How often each is run, at least twice, and after how long not again, nor a larger one: what disturbs it only ever
makes it slower, and the first job waits for all of it."""


class Rehearsals:
    """Of one device. What is learned is what batches of a job would teach, so the first job begins with it."""

    def __init__(
        self,
        device: DeviceExecutor,
        rates: Rates,
        remembered: Remembered,
        workspaces: Workspaces,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`workspaces` measures what each size takes: in a job that would have it touch all of its memory anew."""
        self._device, self._rates, self._remembered, self._clock = device, rates, remembered, clock
        self._workspaces = workspaces

    def seconds(self, prefix: Prefix, most: int, cancel: Cancel, flow: Flow) -> float | None:
        """Seconds per sample, at the best of the sizes up to `most`; None if it stays eager, or memory is too short.

        Blocks until the device had time for it, which is charged to `flow`; must not be called on the device's thread.
        """
        known = self._device.call(partial(self._known, prefix), cancel, flow)
        if known is not None and not known:
            known = self._device.call(partial(self._timed, prefix, most), cancel, flow)
        return min(known.values()) if known else None

    def _known(self, prefix: Prefix) -> Mapping[int, float] | None:
        """What is known by size of the prefix, whose code is loaded now; None if it is eager."""
        prefix.prepare()
        return seconds_by_size(self._remembered.get(curve_name(prefix))) if prefix.is_compiled else None

    def _timed(self, prefix: Prefix, most: int) -> Mapping[int, float]:
        sizes = [size for size in (START << doubling for doubling in range(DOUBLINGS)) if size <= most]
        found: dict[int, float] = {}
        deadline = self._clock() + ENOUGH_SECONDS
        for turn in range(MOST_TURNS):
            for size in list(found) if turn else sizes or [power_of_two(most)]:
                tried = attempt(partial(self._run, prefix, size))
                if not tried.has_value:
                    break
                found[size] = min(tried.get(), found.get(size, math.inf))
                is_last = self._clock() > deadline or 2 * size * found[size] > LONG_SECONDS
                if not turn and is_last:  # of a slow network jobs try no larger ones
                    break
            if turn and self._clock() > deadline:  # in the first, memory was touched for the first time
                break
        if found and sizes == list(found) and most >= 2 * sizes[-1]:
            # a job will try it now and then; here only its memory is measured
            attempt(partial(self._run, prefix, power_of_two(most)))
        for size, seconds in found.items():
            self._rates.learned(prefix.key, size, size * seconds)
        if found:
            self._remembered.put(curve_name(prefix), {str(size): seconds for size, seconds in found.items()})
        return found

    def _run(self, prefix: Prefix, samples: int) -> float:
        batch = spec_input(prefix.input.shape, prefix.input.dtype, samples)
        started = self._clock()
        with self._workspaces.observing(prefix, samples):
            prefix.run(batch)
        return (self._clock() - started) / samples
