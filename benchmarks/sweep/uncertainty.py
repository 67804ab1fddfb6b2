"""How sure a comparison of two streams is, from how much readings of the same stream differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

from benchmarks.sweep.streams import CutPace, Stream

NEAR = 1.05
"""A choice is good if it takes at most so many times as long as any cut."""
SURE = 2.0
"""Standard errors by which a ratio must be away from that to be certain: one in twenty is wrong all the same."""
USUAL_NOISE, USUAL_COUNT = 0.04, 4
"""What is taken for the noise of a reading, and as how many readings that counts, where few have been made yet."""

SHORT = 0.25
"""As how many readings a first, short one counts: it is half as long, and all that is new to the tiers is in it."""


class Verdict(Enum):
    """Whether a choice is within 5 % of what it is compared with."""

    NEAR = "yes"
    FAR = "no"
    OPEN = "open"


@dataclass(frozen=True)
class Best:
    """The fastest cut, and its seconds per sample."""

    name: str
    seconds: float


def spread(paces: Iterable[CutPace]) -> float:
    """Standard deviation of one reading as a part of its stream's mean, taken over all streams together.

    Begins with what is usual, as the first few readings say little of it.
    """
    squares, count = USUAL_COUNT * USUAL_NOISE**2, float(USUAL_COUNT)
    for pace in paces:
        seconds = [] if pace.is_carried else pace.paces
        if len(seconds) > 1:
            mean = fmean(seconds)
            squares += sum((one / mean - 1) ** 2 for one in seconds)
            count += len(seconds) - 1
    return math.sqrt(squares / count)


def error_of_ratio(one: CutPace, other: CutPace, noise: float) -> float:
    """Standard error of the ratio of two streams' paces, as a part of it; 0 for a stream and itself."""
    if one is other:
        return 0.0
    return noise * math.sqrt(1 / _count(one) + 1 / _count(other))


def compared(one: CutPace, other: CutPace, noise: float) -> Verdict:
    """Whether `one` takes at most 5 % longer than `other`, neither of which was given up."""
    ratio, error = one.seconds / other.seconds, SURE * error_of_ratio(one, other, noise)
    if ratio * (1 + error) <= NEAR:
        return Verdict.NEAR
    return Verdict.FAR if ratio * (1 - error) > NEAR else Verdict.OPEN


def _count(pace: CutPace) -> float:
    return SHORT if pace.is_short else max(1, len(pace.paces))


def rivals(name: str, found: Mapping[str, CutPace], streams: Mapping[str, Stream], noise: float) -> dict[str, Verdict]:
    """How a stream compares with each cut that was measured to the end, but for itself."""
    cuts = (cut for cut, stream in streams.items() if stream.is_cut and not found[cut].is_bound and cut != name)
    return {cut: compared(found[name], found[cut], noise) for cut in cuts}


def verdict_on(name: str, found: Mapping[str, CutPace], streams: Mapping[str, Stream], noise: float) -> Verdict:
    """Whether a stream is within 5 % of the best cut: of every cut, that is. What was given up is at least so slow."""
    verdicts = set(rivals(name, found, streams, noise).values())
    if Verdict.FAR in verdicts:
        return Verdict.FAR
    return Verdict.OPEN if Verdict.OPEN in verdicts or found[name].is_bound else Verdict.NEAR


def best_cut(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> Best | None:
    """The fastest cut of those that were watched to the end over this link; None if there is none.

    The least of several noisy means is too small: where either half of the readings names another cut, its seconds are
    told by the half that did not choose it.
    """
    cuts = {
        name: pace for name, pace in found.items() if streams[name].is_cut and not pace.is_bound and not pace.is_carried
    }
    if not cuts:
        return None
    first = min(cuts, key=lambda name: cuts[name].seconds)
    told = []
    for half in (0, 1):
        means = {name: fmean(pace.paces[half::2]) for name, pace in cuts.items() if pace.paces[half::2]}
        chosen = min(means, key=lambda name: means[name], default=first)
        rest = cuts[chosen].paces[1 - half :: 2]
        told.append(cuts[chosen].seconds if chosen == first or not rest else fmean(rest))
    return Best(first, fmean(told))
