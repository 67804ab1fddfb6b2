"""One network at one bandwidth: which streams are watched, how often, and which need not be watched to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.sweep.streams import CutPace, Stream, Watch
from benchmarks.sweep.uncertainty import Verdict, rivals, spread, verdict_on

CLOSE, TURNS = 1.15, 3
"""Before each bandwidth the cuts predicted to take at most so many times as long as the best are watched anew for the
profile, so often (the reading in the middle counts): machines that others share are not as fast as ten minutes ago, on
one tier more than on the other."""
WEIGHT = 0.5
"""Of these readings beside what the profile has of earlier ones, which are older, but many: two readings of a stream
differ by more than most cuts that could be the best."""
HOPELESS, FAR = 1.3, 2.0
"""A stream that is known to be so many times slower than the best cut measured is given up: it counts as at least that.
The first is for cuts that no policy chose, the second for the choices."""
SPARE = 3.0
"""A cut whose bytes the link carries in so many times less than the cut took over a faster link is as slow over this
one: the link did not hold it up there, and does not here."""
FIRST = 0.4
"""Part of the usual time for which each stream is watched at first, to see which of them matter."""
SUSPECT = 1.5
"""A first reading that is so many times slower than predicted is made again, and the faster one counts: it is short,
and a moment's disturbance must not take a cut out that could be the best."""
MOST_RIVALS = 2
"""Cuts that a choice is held against in one turn, the fastest of those that leave open whether it is near the best: one
that only seemed fast makes room for the next."""
MOST_ROUNDS, MOST_SECONDS = 12, 120.0
"""How often those are watched again, in turns, unless it is certain before whether each choice is near the best; after
so many seconds no further turn is begun."""


def measure_streams(
    streams: Mapping[str, Stream],
    faster: Mapping[str, CutPace],
    watch: Watch,
    *,
    rounds: int = MOST_ROUNDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, CutPace]:
    """Every stream by its name; the fastest by the profile first, so that what is hopeless is given up early.

    What a faster link says of a cut that hardly needs the link holds here as well, unless it would be the best.
    Whatever a verdict on a choice depends on is then watched here, in turns, so that a machine that is slower for a
    while slows all of them.

    Args:
        faster: what was measured over a faster link: no cut is faster over this one.
        rounds: most further readings of each.
    """
    found: dict[str, CutPace] = {}
    for name in sorted(streams, key=lambda name: streams[name].predicted):
        found[name] = _surveyed(name, streams, faster, found, watch)
    while (best := _fastest(found, streams)) is not None and found[best].is_carried:  # it must be seen here
        found[best] = _of(watch(streams[best].shares, FIRST, None), CutPace(0.0))
    end = clock() + MOST_SECONDS
    for _ in range(rounds):
        if clock() >= end:
            break
        for name in _in_question(found, streams):
            reading = watch(streams[name].shares, 1.0, None)
            if not reading["is_bound"]:
                found[name] = found[name].with_reading(reading)
    return found


def learned(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> dict[str, float]:
    """What was measured of cuts that the link did not hold up, for the plans over slower ones: as a job's rates are."""
    return {
        name: pace.seconds
        for name, pace in found.items()
        if streams[name].is_cut
        and not (pace.is_bound or pace.is_carried or pace.is_short)
        and _holds(pace, streams[name].floor)
    }


def _surveyed(
    name: str, streams: Mapping[str, Stream], faster: Mapping[str, CutPace], found: Mapping[str, CutPace], watch: Watch
) -> CutPace:
    """A stream as it is seen first, or what is known of it without watching it."""
    stream = streams[name]
    known = faster.get(name) if stream.is_cut else None
    if not stream.is_wanted and known is not None and _holds(known, stream.floor):
        why = "as over a faster link, which did not hold it up: this one carries its bytes in a third of that"
        return replace(known, is_carried=True, why=why)
    best = _fastest(found, streams)
    limit = float("inf") if best is None else found[best].seconds * (FAR if stream.is_wanted else HOPELESS)
    bound = _bound(stream, known)
    if bound.seconds >= limit:
        return bound
    give_up = limit if limit < float("inf") else None
    seen = _of(watch(stream.shares, FIRST, give_up), bound)
    if seen.seconds <= SUSPECT * stream.predicted or stream.predicted >= limit:
        return seen
    again = _of(watch(stream.shares, FIRST, give_up), bound)
    return min(seen, again, key=lambda pace: (pace.is_bound, pace.seconds))


def _fastest(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> str | None:
    """Of the cuts so far; None without one."""
    cuts = [name for name, pace in found.items() if streams[name].is_cut and not pace.is_bound]
    return min(cuts, key=lambda name: found[name].seconds, default=None)


def _in_question(found: Mapping[str, CutPace], streams: Mapping[str, Stream]) -> list[str]:
    """Promised choices of which it is not certain whether they are near the best, and the cuts that leave it open.

    That one is far from the best is never said by its first, short reading alone.
    """
    noise = spread(found.values())
    wanted = set[str]()
    for name, stream in streams.items():
        if not stream.is_promised or found[name].is_bound:
            continue
        verdict = verdict_on(name, found, streams, noise)
        if verdict is Verdict.OPEN or (verdict is Verdict.FAR and found[name].is_short):
            against = rivals(name, found, streams, noise)
            left = (rival for rival, verdict in against.items() if verdict is not Verdict.NEAR)
            wanted |= {name, *sorted(left, key=lambda rival: found[rival].seconds)[:MOST_RIVALS]}
    return sorted(wanted, key=lambda name: found[name].seconds)


def _of(reading: Mapping[str, Any], bound: CutPace) -> CutPace:
    seconds = reading["seconds_per_sample"]
    if not reading["is_bound"]:
        return CutPace(seconds, is_short=True, readings=(reading,))
    why = f"given up after {reading['seconds']:.1f} s and {reading['samples']} samples"
    return CutPace(max(seconds, bound.seconds), True, why=why, readings=(reading,))


def _bound(stream: Stream, known: CutPace | None) -> CutPace:
    """What is known of a stream before it is watched."""
    if known is not None and known.seconds > stream.floor:
        return CutPace(known.seconds, True, why="as slow as over a faster link, at least")
    return CutPace(stream.floor, True, why="the link alone needs that for its bytes")


def _holds(known: CutPace, floor: float) -> bool:
    """Whether what was measured over a faster link holds over one that needs `floor` seconds for the cut's bytes."""
    return not known.is_bound and SPARE * floor <= known.seconds
