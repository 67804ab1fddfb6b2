"""Profiles for tests: written by hand, or drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from hapi.plan import CutCost, Link, Profile

COST = st.floats(1e-6, 1e-1, allow_nan=False, allow_infinity=False)
BYTES = st.integers(1, 4_000_000)


def profile_of(
    *rows: tuple[float, float, float], bits_per_s: float | None = 8e9, latency: float = 0.0, **job: object
) -> Profile:
    """Rows of (bytes out, server seconds, client seconds), named input, cut1, ..., output."""
    names = ["input", *(f"cut{index}" for index in range(1, len(rows) - 1)), "output"]
    link = None if bits_per_s is None else Link(bits_per_s, latency)
    cuts = tuple(CutCost(name, *row) for name, row in zip(names, rows, strict=True))
    return Profile("toy", rows[0][0], cuts, link, **job)  # type: ignore[arg-type]


@st.composite
def profiles(draw: st.DrawFn, max_cuts: int = 6) -> Profile:
    """Any profile: costs need not even be monotone."""
    rows = draw(st.lists(st.tuples(BYTES, COST, COST), min_size=2, max_size=max_cuts))
    return profile_of(
        *rows,
        bits_per_s=draw(st.floats(1e6, 1e11)),
        latency=draw(st.floats(0, 0.1)),
        samples=draw(st.integers(0, 5000)),
        batch_size=draw(st.integers(1, 600)),
        epochs=draw(st.integers(1, 5)),
    )
