"""The throughput knee: the smallest batch that is nearly as fast as the fastest, learned from real batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import cycle, islice

START = 4
"""Where exploring begins; smaller batches are for networks of which this many samples take long."""
MEASURED = 3
"""Batches of a size before it is judged."""
RECENT = 8
"""Batches of a size that are remembered. The fastest of them counts: interference only ever makes a batch slower."""
GAIN = 1.05
"""Exploring goes on while one of two further doublings gains more than 5 %."""
NEARLY = 1.02
"""What is within 2 % of the fastest is as good: batches of 2 that were 4 % slower on their own cost a job 8 %."""
LONG_SECONDS, ROUGHLY = 0.4, 1.05
"""No size is tried of which a batch would take longer. Where one does, half the size is taken if that is at most 5 %
slower: the rows of a batch leave together, and until then the link has nothing to do."""
FIRST_PROBE_AFTER, PROBE_EVERY = 8, 64
"""Batches after which another size is tried again: few after the size changed, twice as many each time up to the most.

A size that was measured while others kept the machine busy looks slower than it is: without being tried again it would
never be taken.
"""
PROBES = (0.5, 2.0, 4.0)
"""Sizes that are tried again, in turn, as multiples of the present one: up as far as exploring looks, two doublings."""
HUSHED = 64
"""Batches for which no larger size is tried again after somebody wanted few samples: they would wait for each."""
PROBE_PATIENCE = 4
"""Batches of other sizes (there were not more samples) after which a trial is given up."""


def power_of_two(number: int) -> int:
    """The largest power of two that is not above `number` (at least 1)."""
    return 1 << (max(1, number).bit_length() - 1)


class Curve:
    """Seconds per sample over batch size, for one prefix on one device. Sizes are powers of two. Not thread-safe."""

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        """`seconds`: what `best` said when the prefix was last known."""
        self._recent = {
            size: deque([value] * MEASURED, maxlen=RECENT) for size, value in sorted((seconds or {}).items())
        }
        self._batches = 0
        self._probe: int | None = None
        self._hits = self._misses = 0
        self._factors = cycle(PROBES)
        self._probe_after = FIRST_PROBE_AFTER
        self._settled: int | None = None
        self._hushed = 0

    @property
    def best(self) -> dict[int, float]:
        """Seconds per sample of the sizes that were measured often enough."""
        return {size: min(recent) for size, recent in sorted(self._recent.items()) if len(recent) >= MEASURED}

    def record(self, samples: int, seconds: float) -> None:
        """A batch took so long. It tells of the power of two that it is within an eighth of, and else of nothing."""
        size = power_of_two(samples)
        size = min(size, 2 * size, key=lambda power: abs(power - samples))
        if abs(size - samples) * 8 <= size:
            self._recent.setdefault(size, deque(maxlen=RECENT)).append(seconds / samples)
        self._batches += 1
        self._hushed = max(0, self._hushed - 1)
        if self._probe is not None:
            self._hits += size == self._probe
            self._misses += size != self._probe
            if self._hits >= MEASURED or self._misses >= PROBE_PATIENCE:
                self._probe, self._batches = None, 0
        elif self._batches >= self._probe_after:
            self._begin_probe()

    def hush(self) -> None:
        """Somebody wants few samples beside those who want many: for a while no size above the present one is tried."""
        self._hushed = HUSHED
        if self._probe is not None and self._probe > (_knee(self.best) or self._probe):
            self._probe, self._batches = None, 0

    def target(self, cap: int) -> tuple[int, bool, bool]:
        """(size, whether it is tried to learn from, whether only `cap` keeps it from being larger); size <= cap."""
        cap = power_of_two(cap)
        best = self.best
        unexplored = self._unexplored(best)
        if unexplored is not None and unexplored <= cap:
            return unexplored, True, False
        if self._probe is not None and self._probe <= cap:
            return self._probe, True, False
        size = _knee({size: value for size, value in best.items() if size <= cap}) or cap
        wanted = unexplored or _knee(best) or cap
        return size, False, size == cap and wanted > cap

    def _begin_probe(self) -> None:
        """Goes on to the next of PROBES, as often measured as a size is before it is judged."""
        settled = _knee(self.best)
        if settled is None:
            return
        self._probe_after = FIRST_PROBE_AFTER if settled != self._settled else min(PROBE_EVERY, 2 * self._probe_after)
        self._settled = settled
        seconds = self.best[settled]
        most = settled if self._hushed else max(settled, LONG_SECONDS / seconds)
        least = 1 if _is_long(settled, seconds) else START
        tried = (settled * factor for factor in islice(self._factors, len(PROBES)))
        size = next((size for size in tried if least <= size <= most), None)
        self._probe, self._hits, self._misses = None if size is None else int(size), 0, 0
        if size is None:
            self._batches = 0

    @staticmethod
    def _unexplored(best: Mapping[int, float]) -> int | None:
        """The next larger size that may be faster by more than 5 %."""
        seen: list[float] = []
        for size in _doublings():
            if size not in best:
                return size if len(seen) < 3 or min(seen[:-2]) > GAIN * min(seen[-2:]) else None
            seen.append(best[size])
            if _is_long(2 * size, best[size]):
                return None
        raise AssertionError("unreachable: doublings do not end")


def _is_long(size: int, seconds_each: float) -> bool:
    return size * seconds_each > LONG_SECONDS


def _doublings() -> Iterator[int]:
    size = START
    while True:
        yield size
        size *= 2


def _knee(best: Mapping[int, float]) -> int | None:
    """The smallest size from START on that is nearly as fast as the fastest, smaller ones where batches are long."""
    if not best:
        return None
    fastest = min(best.values())
    sizes = [size for size, seconds in sorted(best.items()) if seconds <= NEARLY * fastest]
    size = next((size for size in sizes if size >= START), sizes[-1])
    while _is_long(size, best[size]) and best.get(size // 2, math.inf) <= ROUGHLY * fastest:
        size //= 2
    return size
