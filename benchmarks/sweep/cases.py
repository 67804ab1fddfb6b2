"""One network at one bandwidth: which cuts are watched, in which order, and which need not be watched to the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HOPELESS = 1.5
"""A cut that is known to be so many times slower than the best one measured is given up: it counts as at least that."""
CLOSE = 1.1
"""Cuts within that of the best are watched once more: the least of several noisy numbers is too small otherwise."""
MOST_AGAIN = 3
SPARE = 3.0
"""A cut whose bytes the link carries in so many times less than the cut took over a faster link is as slow over this
one: the link did not hold it up there, and does not here."""
Shares = tuple[tuple[str, float], ...]
Watch = Callable[[Shares, float, float | None], Mapping[str, Any]]
"""(shares, seconds after filling, pace at which to give up: None for never) -> the client's answer."""


@dataclass
class CutPace:
    """A cut at a bandwidth, per sample.

    Attributes:
        seconds: measured, the mean of all readings; if `is_bound`, the cut is at least so slow.
        is_carried: measured over a faster link, not over this one.
        why: what bounds it, or where it was measured, in words, where it was not watched to the end.
        readings: the answers of the client.
    """

    seconds: float
    is_bound: bool = False
    is_carried: bool = False
    why: str = ""
    readings: list[Mapping[str, Any]] = field(default_factory=list)


def measure_cuts(
    predicted: Mapping[str, float],
    wanted: set[str],
    floors: Mapping[str, float],
    faster: Mapping[str, CutPace],
    watch: Watch,
    seconds: float,
) -> dict[str, CutPace]:
    """Every cut: the `wanted` ones (those that a policy chose) watched to the end, the rest until they are hopeless.

    What a faster link says of a cut that hardly needs the link holds here as well, unless it is near the best.

    Args:
        predicted: seconds per sample by the profile; cuts are watched in that order.
        floors: seconds per sample that the link alone needs for a cut's bytes.
        faster: what was measured over a faster link: no cut is faster over this one.
        seconds: to watch each, once its pipeline has filled.
    """
    found: dict[str, CutPace] = {}
    for name in sorted(predicted, key=lambda cut: (cut not in wanted, predicted[cut])):
        if name not in wanted and (known := faster.get(name)) is not None and _holds(known, floors[name]):
            why = "as over a faster link, which did not hold it up: this one carries its bytes in a third of that"
            found[name] = CutPace(known.seconds, is_carried=True, why=why, readings=known.readings)
            continue
        whole = [pace.seconds for pace in found.values() if not pace.is_bound]
        limit = HOPELESS * min(whole) if whole else None
        bound = _bound(name, floors, faster)
        if name not in wanted and limit is not None and bound.seconds >= limit:
            found[name] = bound
            continue
        reading = watch(((name, 1.0),), seconds, None if name in wanted else limit)
        found[name] = _of(reading, bound)
    for name in _close(found):
        reading = watch(((name, 1.0),), seconds, None)
        if not reading["is_bound"]:
            readings = [reading] if found[name].is_carried else [*found[name].readings, reading]
            found[name] = CutPace(sum(one["seconds_per_sample"] for one in readings) / len(readings), readings=readings)
    return found


def best_of(found: Mapping[str, CutPace]) -> str | None:
    """The fastest cut of those that were watched to the end, over this link; None if there is none."""
    whole = [name for name, pace in found.items() if not pace.is_bound and not pace.is_carried]
    return min(whole, key=lambda name: found[name].seconds) if whole else None


def _of(reading: Mapping[str, Any], bound: CutPace) -> CutPace:
    seconds = reading["seconds_per_sample"]
    if not reading["is_bound"]:
        return CutPace(seconds, readings=[reading])
    why = f"given up after {reading['seconds']:.1f} s and {reading['samples']} samples"
    return CutPace(max(seconds, bound.seconds), True, why=why, readings=[reading])


def _bound(name: str, floors: Mapping[str, float], faster: Mapping[str, CutPace]) -> CutPace:
    """What is known of a cut before it is watched."""
    known = faster.get(name)
    if known is not None and known.seconds > floors[name]:
        return CutPace(known.seconds, True, why="as slow as over a faster link, at least")
    return CutPace(floors[name], True, why="the link alone needs that for its bytes")


def _holds(known: CutPace, floor: float) -> bool:
    """Whether what was measured over a faster link holds over one that needs `floor` seconds for the cut's bytes."""
    return not known.is_bound and SPARE * floor <= known.seconds


def _close(found: Mapping[str, CutPace]) -> list[str]:
    """Those near the best, and the best, the fastest first; carried ones must be watched here to be the best."""
    whole = {name: pace.seconds for name, pace in found.items() if not pace.is_bound}
    near = sorted((name for name in whole if whole[name] <= CLOSE * min(whole.values())), key=lambda name: whole[name])
    return near[:MOST_AGAIN] if len(near) > 1 or any(found[name].is_carried for name in near) else []
