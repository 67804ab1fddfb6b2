"""One network at one bandwidth: which cuts are watched, in which order, and which need not be watched to the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HOPELESS = 1.5
"""A cut that is known to be so many times slower than the best one measured is given up: it counts as at least that."""
CLOSE = 1.1
"""Cuts within that of the best are watched once more: the least of several noisy numbers is too small otherwise."""
MOST_AGAIN = 4
Shares = tuple[tuple[str, float], ...]
Watch = Callable[[Shares, float, float | None], Mapping[str, Any]]
"""(shares, seconds after filling, pace at which to give up: None for never) -> the client's answer."""


@dataclass
class CutPace:
    """A cut at a bandwidth, per sample.

    Attributes:
        seconds: measured, the mean of all readings; if `is_bound`, the cut is at least so slow.
        why: what bounds it, in words, where it was not watched to the end.
        readings: the answers of the client.
    """

    seconds: float
    is_bound: bool = False
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

    Args:
        predicted: seconds per sample by the profile; cuts are watched in that order.
        floors: seconds per sample that the link alone needs for a cut's bytes.
        faster: what was measured over a faster link: no cut is faster over this one.
        seconds: to watch each, once its pipeline has filled.
    """
    found: dict[str, CutPace] = {}
    for name in sorted(predicted, key=lambda cut: (cut not in wanted, predicted[cut])):
        best = best_of(found)
        limit = None if best is None else HOPELESS * found[best].seconds
        bound = _bound(name, floors, faster)
        if name not in wanted and limit is not None and bound.seconds >= limit:
            found[name] = bound
            continue
        reading = watch(((name, 1.0),), seconds, None if name in wanted else limit)
        found[name] = _of(reading, bound)
    for name in _close(found):
        reading = watch(((name, 1.0),), seconds, None)
        if not reading["is_bound"]:
            readings = [*found[name].readings, reading]
            found[name] = CutPace(sum(one["seconds_per_sample"] for one in readings) / len(readings), readings=readings)
    return found


def best_of(found: Mapping[str, CutPace]) -> str | None:
    """The fastest cut of those that were watched to the end; None if there is none."""
    whole = [name for name, pace in found.items() if not pace.is_bound]
    return min(whole, key=lambda name: found[name].seconds) if whole else None


def _of(reading: Mapping[str, Any], bound: CutPace) -> CutPace:
    seconds = reading["seconds_per_sample"]
    if not reading["is_bound"]:
        return CutPace(seconds, readings=[reading])
    why = f"given up after {reading['seconds']:.1f} s and {reading['samples']} samples"
    return CutPace(max(seconds, bound.seconds), True, why, [reading])


def _bound(name: str, floors: Mapping[str, float], faster: Mapping[str, CutPace]) -> CutPace:
    """What is known of a cut before it is watched."""
    known = faster.get(name)
    if known is not None and known.seconds > floors[name]:
        return CutPace(known.seconds, True, "as slow as over a faster link, at least")
    return CutPace(floors[name], True, "the link alone needs that for its bytes")


def _close(found: Mapping[str, CutPace]) -> list[str]:
    best = best_of(found)
    if best is None:
        return []
    near = [name for name, pace in found.items() if not pace.is_bound and pace.seconds <= CLOSE * found[best].seconds]
    return sorted(near, key=lambda name: found[name].seconds)[:MOST_AGAIN] if len(near) > 1 else []
