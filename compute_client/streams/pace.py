"""The pace of a steady stream of samples, from the moments at which batches arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hapi.errors import BatchTimeoutError

LEAST_FILLS = 3.0
"""Times that all that is under way or waits must have been replaced once the pipeline is full, before a pace is told.
Samples arrive in bursts: requests that are under way together share server and link and end nearly together, and what
is ready early waits for a late one before it. No burst is larger than what fills the pipeline."""

STARTING = 0.5
"""Seconds that a stream may take to begin, which do not count against it: it makes connections, and the server may see
the cut for the first time."""


@dataclass(frozen=True)
class Rule:
    """How long a stream is watched.

    Attributes:
        round_samples: those of the requests under way together, one of each.
        fill_samples: all that is under way or waits to be taken, a round or more: until so many are through, the tiers
            do not yet work as in the middle of a long epoch.
        seconds: to watch after that.
        most_seconds: after which the stream is given up, from its beginning.
        give_up: seconds per sample; a stream that is slower for certain is given up at once. None: none is.
    """

    round_samples: int
    fill_samples: int
    seconds: float
    most_seconds: float
    give_up: float | None = None


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

    The pace is taken over whole rounds, from every moment in them, so that it does not matter where in a burst watching
    ends.
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
                fills = (total - arrivals[0][0]) / rule.fill_samples
                if now - filled_at >= rule.seconds and fills >= LEAST_FILLS:
                    return Pace(pace_of(arrivals, rule.round_samples), total, now)
            # all that is under way may be done but for its last bytes: no more than that was made meanwhile
            is_slower = rule.give_up is not None and now - STARTING > rule.give_up * (total + rule.fill_samples)
            if is_slower or now > rule.most_seconds:
                break
    except BatchTimeoutError:
        pass
    elapsed = clock() - began
    return Pace(max(0.0, elapsed - STARTING) / (total + rule.fill_samples), total, elapsed, is_bound=True)


def pace_of(arrivals: Sequence[tuple[int, float]], round_samples: int) -> float:
    """Seconds per sample from (samples so far, seconds), which cover a round or more.

    The mean over all pairs of moments that lie the same number of whole rounds apart: two thirds of what was watched,
    one round at least.
    """
    samples, seconds = np.array(arrivals, dtype=np.float64).T
    span = samples[-1] - samples[0]
    apart = round_samples * max(1, int(2 / 3 * span / round_samples))
    later = np.searchsorted(samples, samples + apart)
    first = np.flatnonzero(later < len(samples))
    last = later[first]
    return float(np.mean((seconds[last] - seconds[first]) / (samples[last] - samples[first])))
