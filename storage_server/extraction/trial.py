"""What a sample takes on its way through the whole server: small requests that are run for a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter

from hapi.plan import INPUT
from profiler import LoadCost, TierProfile, TierRow

PASSES = 2
"""Of each request, of which the faster one counts."""
SHORT = 0.25
"""Part of a trial's samples for which a request is run that its own is held against."""
LIGHT = 0.25
"""Part of the whole network's seconds that the prefix of a trial may take, so that trials are short."""


def as_run(load: LoadCost, tier: TierProfile, seconds: Callable[[str], float | None]) -> LoadCost:
    """What loading takes in a request: measured apart it lacks what rows cost in queues, between threads and in frames.

    `seconds(cut)` runs requests and tells their seconds per sample, that of cut `input` reads only; None if there is no
    memory for it. What a computed cut takes beyond its graph and its bytes counts as loading. Nothing becomes less than
    it is apart.
    """
    read = max(load.read_seconds, seconds(INPUT) or 0.0)
    row = light_row(tier)
    whole = None if row is None else seconds(row.name)
    if row is None or whole is None:
        return replace(load, read_seconds=read)
    if tier.computes_while_loading:  # whichever is slower sets the pace
        rest = whole if whole > row.prefix_seconds else 0.0
    else:
        rest = whole - row.prefix_seconds
    rest -= row.out_bytes * tier.encode_seconds_per_byte
    return replace(load, read_seconds=read, load_seconds=max(load.load_seconds, rest))


def light_row(tier: TierProfile) -> TierRow | None:
    """Of the cuts with little to compute that fit here, the one with the fewest bytes; None if there is none."""
    rows = tier.rows[1 : 1 + [row.name for row in tier.rows].index(tier.fits_to)]
    most = LIGHT * tier.rows[-1].prefix_seconds
    light = [row for row in rows if row.prefix_seconds <= most] or list(rows[:1])
    return min(light, key=lambda row: row.out_bytes, default=None)


def seconds_per_sample(whole: Callable[[int], float], samples: int) -> float:
    """What a request with so many samples takes for each more than a shorter one, where `whole(n)` runs one with n.

    Reading runs ahead of the answer: most of it is over when the first samples come, so how fast the others follow does
    not tell what they took.
    """
    short = int(SHORT * samples)
    seconds = min(whole(samples) for _ in range(PASSES))
    if not short:
        return seconds / samples
    return max(0.0, seconds - min(whole(short) for _ in range(PASSES))) / (samples - short)


def answer_seconds(pieces: Iterable[bytes], clock: Callable[[], float] = perf_counter) -> float:
    """Of a whole answer, from the request to its end."""
    began = clock()
    for _ in pieces:
        pass
    return clock() - began
