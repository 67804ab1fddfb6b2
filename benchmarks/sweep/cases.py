"""One network at one bandwidth: which streams are watched, in which order, and which need not be watched to the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

HOPELESS, FAR = 1.5, 3.0
"""A stream that is known to be so many times slower than the best cut measured is given up: it counts as at least that.
The first is for cuts that no policy chose, the second for the choices."""
CLOSE = 1.1
"""Streams within that of the best are watched again: the least of several noisy numbers is too small otherwise."""
ROUNDS, MOST_AGAIN, LONGER = 2, 4, 3.0
"""How often that happens, to how many of them, in turns, and for how many times as long as at first."""
MIXED_LONGER = 2.0
"""Times as long as a cut is a mix watched: what is ready of one cut waits for another, and then comes at once."""
SPARE = 3.0
"""A cut whose bytes the link carries in so many times less than the cut took over a faster link is as slow over this
one: the link did not hold it up there, and does not here."""
Shares = tuple[tuple[str, float], ...]
Watch = Callable[[Shares, float, float | None], Mapping[str, Any]]
"""(shares, seconds after filling, pace at which to give up: None for never) -> the client's answer."""


@dataclass(frozen=True)
class Stream:
    """A cut, or a mix of several.

    Attributes:
        shares: cut -> part of the samples.
        predicted: seconds per sample by the profile.
        floor: seconds per sample that the link alone needs for its bytes.
        is_wanted: a policy chose it.
    """

    shares: Shares
    predicted: float
    floor: float = 0.0
    is_wanted: bool = False

    @property
    def is_cut(self) -> bool:
        return len(self.shares) == 1

    @property
    def longer(self) -> float:
        """Times as long as a cut alone it is watched."""
        return 1.0 if self.is_cut else MIXED_LONGER


@dataclass
class CutPace:
    """A stream at a bandwidth, per sample.

    Attributes:
        seconds: measured, the mean of all readings; if `is_bound`, it is at least so slow.
        is_carried: measured over a faster link, not over this one.
        why: what bounds it, or where it was measured, in words, where it was not watched to the end.
        readings: the answers of the client.
    """

    seconds: float
    is_bound: bool = False
    is_carried: bool = False
    why: str = ""
    readings: list[Mapping[str, Any]] = field(default_factory=list)


def measure_streams(
    streams: Mapping[str, Stream], faster: Mapping[str, CutPace], watch: Watch, seconds: float
) -> dict[str, CutPace]:
    """Every stream by its name; the fastest by the profile first, so that what is hopeless is given up early.

    What a faster link says of a cut that hardly needs the link holds here as well, unless it is near the best. Those
    near the best are then watched again, in turns, so that a machine that is slower for a while slows all of them.

    Args:
        faster: what was measured over a faster link: no cut is faster over this one.
        seconds: to watch each at first, once its pipeline has filled.
    """
    found: dict[str, CutPace] = {}
    for name in sorted(streams, key=lambda name: streams[name].predicted):
        stream = streams[name]
        known = faster.get(name) if stream.is_cut else None
        if not stream.is_wanted and known is not None and _holds(known, stream.floor):
            why = "as over a faster link, which did not hold it up: this one carries its bytes in a third of that"
            found[name] = CutPace(known.seconds, is_carried=True, why=why, readings=known.readings)
            continue
        best = min((pace.seconds for cut, pace in found.items() if _counts(pace, streams[cut])), default=None)
        limit = None if best is None else best * (FAR if stream.is_wanted else HOPELESS)
        bound = _bound(stream, known)
        if limit is not None and bound.seconds >= limit:
            found[name] = bound
            continue
        found[name] = _of(watch(stream.shares, stream.longer * seconds, limit), bound)
    again = _close(found, streams)
    for _ in range(ROUNDS):
        for name in again:
            reading = watch(streams[name].shares, LONGER * streams[name].longer * seconds, None)
            if not reading["is_bound"]:
                found[name] = _with(found[name], reading)
    return found


def best_of(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> str | None:
    """The fastest cut of those that were watched to the end, over this link; None if there is none."""
    whole = [name for name, pace in found.items() if _counts(pace, streams[name]) and not pace.is_carried]
    return min(whole, key=lambda name: found[name].seconds) if whole else None


def _counts(pace: CutPace, stream: Stream) -> bool:
    return stream.is_cut and not pace.is_bound


def _of(reading: Mapping[str, Any], bound: CutPace) -> CutPace:
    seconds = reading["seconds_per_sample"]
    if not reading["is_bound"]:
        return CutPace(seconds, readings=[reading])
    why = f"given up after {reading['seconds']:.1f} s and {reading['samples']} samples"
    return CutPace(max(seconds, bound.seconds), True, why=why, readings=[reading])


def _with(pace: CutPace, reading: Mapping[str, Any]) -> CutPace:
    """With one more reading; those that were given up or made over another link do not count beside it."""
    readings = [reading] if pace.is_carried or pace.is_bound else [*pace.readings, reading]
    return CutPace(fmean(one["seconds_per_sample"] for one in readings), readings=readings)


def _bound(stream: Stream, known: CutPace | None) -> CutPace:
    """What is known of a stream before it is watched."""
    if known is not None and known.seconds > stream.floor:
        return CutPace(known.seconds, True, why="as slow as over a faster link, at least")
    return CutPace(stream.floor, True, why="the link alone needs that for its bytes")


def _holds(known: CutPace, floor: float) -> bool:
    """Whether what was measured over a faster link holds over one that needs `floor` seconds for the cut's bytes."""
    return not known.is_bound and SPARE * floor <= known.seconds


def _close(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> Sequence[str]:
    """Cuts near the best, and choices, the fastest first; what was carried must be watched here to be the best."""
    whole = [name for name, pace in found.items() if not pace.is_bound]
    cuts = [found[name].seconds for name in whole if streams[name].is_cut]
    if not cuts:
        return []
    near = [name for name in whole if found[name].seconds <= CLOSE * min(cuts)]
    return sorted(near, key=lambda name: found[name].seconds)[:MOST_AGAIN]
