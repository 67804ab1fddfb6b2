"""The pace of a steady stream of samples, from the moments at which batches arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hapi.errors import BatchTimeoutError

LEAST_ARRIVALS = 6
"""Batches after the pipeline has filled, below which nothing is said of a pace."""


@dataclass(frozen=True)
class Rule:
    """How long a stream is watched.

    Attributes:
        fill_samples: those of the requests in flight: until they are through, the tiers do not all work at once.
        seconds: to watch after that.
        most_seconds: after which the stream is given up, from its beginning.
    """

    fill_samples: int
    seconds: float
    most_seconds: float


@dataclass(frozen=True)
class Pace:
    """What was seen of a stream.

    Attributes:
        seconds_per_sample: its pace once filled; if it `is_bound`, the stream was given up and is at least so slow.
        samples: those that arrived.
        seconds: for which it was watched, filling included.
    """

    seconds_per_sample: float
    samples: int
    seconds: float
    is_bound: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def watch(batches: Iterable[int], rule: Rule, clock: Callable[[], float]) -> Pace:
    """Takes batches (their numbers of samples) until the rule is satisfied.

    The pace is the slope of a line through the moments at which batches were done: unlike the time between the first
    and the last, it depends little on where in a burst (samples of one request arrive together) watching ends.
    A BatchTimeoutError of `batches` counts as giving up.
    """
    began = clock()
    total, arrivals = 0, []
    filled_at: float | None = None
    try:
        for count in batches:
            total += count
            now = clock() - began
            if total >= rule.fill_samples:
                arrivals.append((total, now))
                filled_at = now if filled_at is None else filled_at
                if now - filled_at >= rule.seconds and len(arrivals) >= LEAST_ARRIVALS:
                    return Pace(slope(arrivals), total, now)
            if now > rule.most_seconds:
                break
    except BatchTimeoutError:
        pass
    elapsed = clock() - began
    return Pace(elapsed / (total + rule.fill_samples), total, elapsed, is_bound=True)


def slope(arrivals: Iterable[tuple[int, float]]) -> float:
    """Seconds per sample of the least-squares line through (samples so far, seconds)."""
    samples, seconds = np.array(list(arrivals), dtype=np.float64).T
    samples = samples - samples.mean()
    return float(samples @ seconds / (samples @ samples))
