"""What a sample takes on its way through the whole server: small requests that are run for a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from time import perf_counter

import numpy as np

from hapi.plan import INPUT
from profiler import LoadCost, TierProfile, TierRow

PASSES = 2
"""Of each request, of which the faster one counts."""
SHORT = 0.25
"""Part of a trial's samples for which a request is run that its own is held against."""
LIGHT = 0.25
"""Part of the whole network's seconds that the prefix of a trial may take, so that trials are short."""
DEEPER = (1.0, 0.5)
"""Parts of the seconds of the longest prefix that may be tried at which further cuts are tried, while there is time."""
DEEPER_SECONDS = 2.5
"""For all of those together, as predicted: a slow network is tried less deeply."""


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


def beyond(
    tier: TierProfile, load_seconds: float, samples: int, seconds: Callable[[str], float | None]
) -> dict[str, float]:
    """Cut -> what requests with so many samples take per sample beyond loading, prefix and bytes, at a few cuts.

    In them a prefix shares a processor with decoding: batches are not always full, and what else runs takes weights
    from the caches. `load_seconds` are what `as_run` found, `seconds(cut)` runs the requests. Nothing on an
    accelerator, whose time is its own.
    """
    found = {}
    for row in [] if tier.computes_while_loading else deeper_rows(tier, load_seconds, samples):
        whole = seconds(row.name)
        if whole is not None:
            parts = load_seconds + row.prefix_seconds + row.out_bytes * tier.encode_seconds_per_byte
            found[row.name] = max(0.0, whole - parts)
    return found


def in_jobs(tier: TierProfile, more: Mapping[str, float]) -> TierProfile:
    """The tier with prefixes as long as they are in requests: `more` is what `beyond` found.

    Between two of those cuts it is added in proportion, from the light cut on, of which all is in loading; after the
    last as much in proportion as there.
    """
    light = light_row(tier)
    known, added = [0.0 if light is None else light.prefix_seconds], [0.0]
    for row in tier.rows:
        if row.name in more and row.prefix_seconds > known[-1]:
            known.append(row.prefix_seconds)
            added.append(max(added[-1], more[row.name]))
    slowness = added[-1] / known[-1] if known[-1] else 0.0

    def longer(seconds: float) -> float:
        return seconds + float(np.interp(seconds, known, added)) + slowness * max(0.0, seconds - known[-1])

    return replace(tier, rows=tuple(replace(row, prefix_seconds=longer(row.prefix_seconds)) for row in tier.rows))


def deeper_rows(tier: TierProfile, load_seconds: float, samples: int) -> list[TierRow]:
    """The cuts to be tried beside the light one, in order: as deep as time allows, and one half as deep."""
    rows = tier.rows[1 : 1 + [row.name for row in tier.rows].index(tier.fits_to)]
    light, left = light_row(tier), DEEPER_SECONDS
    if light is None:
        return []
    runs = PASSES * (samples + int(SHORT * samples))
    affordable = [row for row in rows if runs * (load_seconds + row.prefix_seconds) <= left]
    longest = max((row.prefix_seconds for row in affordable), default=0.0)
    chosen: list[TierRow] = []
    for part in DEEPER:
        row = min(affordable, key=lambda row: (abs(row.prefix_seconds - part * longest), row.out_bytes), default=light)
        cost = runs * (load_seconds + row.prefix_seconds)
        if row.prefix_seconds > light.prefix_seconds and row not in chosen and cost <= left:
            chosen.append(row)
            left -= cost
    return sorted(chosen, key=lambda row: row.prefix_seconds)


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
