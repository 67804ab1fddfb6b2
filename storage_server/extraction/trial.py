"""What a sample takes on its way through the whole server: small requests that are run for a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter

from hapi.plan import INPUT
from profiler import LoadCost, TierProfile, TierRow

PASSES = 2
"""Of each request, of which the faster one counts."""
FILLING = 0.25
"""Part of an answer, by bytes, after which all stages work."""
LIGHT = 0.25
"""Part of the whole network's seconds that the prefix of a trial may take, so that trials are short."""


def as_run(load: LoadCost, tier: TierProfile, seconds: Callable[[str], float | None]) -> LoadCost:
    """What loading takes in a request: measured apart it lacks what rows cost in queues, between threads and in frames.

    `seconds(cut)` runs a request and tells its seconds per sample, that of cut `input` reads only; None if there is no
    memory for it. What a computed cut takes beyond its graph and its bytes counts as loading. Nothing becomes less than
    it is apart.
    """
    read = max(load.read_seconds, _fastest(seconds, INPUT) or 0.0)
    row = light_row(tier)
    whole = None if row is None else _fastest(seconds, row.name)
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


def seconds_per_sample(pieces: Iterable[bytes], samples: int, clock: Callable[[], float] = perf_counter) -> float:
    """Of an answer with so many samples, once it flows; of the whole answer if it comes in too few pieces to tell."""
    began = clock()
    moments, total = list[tuple[int, float]](), 0
    for piece in pieces:
        total += len(piece)
        moments.append((total, clock()))
    ended = moments[-1][1] if moments else clock()
    flowing = [(size, at) for size, at in moments if FILLING * total <= size <= (1 - FILLING) * total]
    if not flowing or not total:
        return (ended - began) / samples
    size, at = flowing[0]
    return (ended - at) / (1 - size / total) / samples


def _fastest(seconds: Callable[[str], float | None], cut: str) -> float | None:
    taken = [seconds(cut) for _ in range(PASSES)]
    return min((one for one in taken if one is not None), default=None)
