"""What a stream over a cut takes with both tiers at work, put into a profile whose parts were measured one by one.

Timed alone, neither tier waits for what they share: on one machine caches and memory, everywhere what a job does beside
the work that was timed. A cut's busier tier sets the pace of a stream over it, so that pace is what it really takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, CutCost, Link, Profile, WireCost

TOLERANCE = 1.3
"""By so many times a profile may be wrong about one cut beside another."""
TURNS = 3
"""How often each stream is watched: a machine that is slower for a while slows one reading of each, and the one in the
middle counts."""
MOST_SECONDS = 300.0
"""After which no further turn is begun: readings that take so long are long enough that one will do."""
LINK_PART = 0.8
"""A stream whose bytes take so large a part of its time on the link tells nothing of the tiers."""


def contenders(profile: Profile) -> tuple[str, ...]:
    """The cuts that could be the best over some link, in order: no other is certain to be faster with no more bytes.

    Both ends are among them, of which mixes are made, as far as the server has the memory for them.
    """
    names = [cut.name for cut in profile.cuts]
    cuts = profile.cuts[: names.index(profile.server_fits_to) + 1]

    def is_one(cut: CutCost) -> bool:
        rivals = (_pace(other) for other in cuts if other.out_bytes <= cut.out_bytes)
        return cut.name in (INPUT, OUTPUT) or _pace(cut) <= TOLERANCE * min(rivals)

    return tuple(cut.name for cut in cuts if is_one(cut))


def watched(
    names: Sequence[str],
    pace: Callable[[str], float | None],
    turns: int = TURNS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Has a stream over each of these cuts watched, in turns, and answers the median of what each took per sample.

    `pace` answers seconds, or None for a stream that did not become steady: without any answer a cut is left out. Slow
    networks have fewer turns, one at least: MOST_SECONDS.
    """
    seen: list[tuple[str, float | None]] = []
    begun = clock()
    for turn in range(turns):
        if turn and clock() - begun >= MOST_SECONDS:
            break
        seen += [(name, pace(name)) for name in names]
    paces = {name: [one for other, one in seen if other == name and one is not None] for name in names}
    return {name: median(found) for name, found in paces.items() if found}


def calibrated(profile: Profile, paces: Mapping[str, float], link: Link, weight: float = 1.0) -> Profile:
    """The profile with what streams over some of its cuts took.

    The busier tier of such a cut gets the seconds of its stream, in all ways of the cut's features by the same factor,
    and that of a cut between two of them a factor between theirs. `details` has the paces that were used.

    Args:
        paces: seconds per sample of each stream. InputError for what is no cut.
        link: over which they ran; one that it held up is left out.
        weight: of the paces beside what the profile has, in (0, 1]; less than 1 averages over several calibrations.
    """
    places = {cut.name: place for place, cut in enumerate(profile.cuts)}
    if unknown := [name for name in paces if name not in places]:
        raise InputError(f"paces of {', '.join(unknown)}: the profile of {profile.model!r} has no such cut.")
    used = {
        name: paces[name]
        for name in sorted(paces, key=lambda name: places[name])
        if 8 * profile.cut(name).out_bytes / link.bandwidth_bits_per_s < LINK_PART * paces[name]
        and _pace(profile.cut(name)) > 0
    }
    if not used:
        return profile
    known = [1 + weight * (seconds / _pace(profile.cut(name)) - 1) for name, seconds in used.items()]
    factors = np.interp(range(len(profile.cuts)), [places[name] for name in used], known)
    cuts = tuple(_slowed(cut, float(factor)) for cut, factor in zip(profile.cuts, factors, strict=True))
    return replace(profile, cuts=cuts, details={**profile.details, "stream_seconds": used})


def about_streams(profile: Profile) -> str:
    """Of which cuts a profile has the seconds of streams, for people."""
    used = profile.details.get("stream_seconds")
    if not used:
        return (
            "No stream told anything: each was held up by the link, or did not become steady. All seconds are those of "
            "tiers timed alone. Measure over a faster link, or when neither machine has anything else to do."
        )
    return f"Seconds are those of streams over {', '.join(used)}; other cuts were scaled as those beside them."


def _pace(cut: CutCost) -> float:
    """Seconds per sample of the busier tier."""
    return max(cut.server_seconds, cut.client_seconds)


def _slowed(cut: CutCost, factor: float) -> CutCost:
    """With the seconds of its busier tier so many times as long; the other cannot be busier than that."""
    most = factor * _pace(cut)
    is_served = cut.server_seconds >= cut.client_seconds

    def seconds(cost: CutCost | WireCost) -> dict[str, float]:
        server, client = cost.server_seconds, cost.client_seconds
        if is_served:
            return {"server_seconds": factor * server, "client_seconds": min(client, most)}
        return {"server_seconds": min(server, most), "client_seconds": factor * client}

    return replace(cut, **seconds(cut), wire=tuple(replace(way, **seconds(way)) for way in cut.wire))  # type: ignore[arg-type]
