"""What a run says in a sentence or two: the range of the ratios that matter, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.bench.rows import Row

RATIOS = (
    ("ratio_to_plain", "is {} times as fast as plain PyTorch"),
    ("ratio_to_none", "is {} times as fast as without pushdown"),
    ("bytes_ratio_to_plain", "receives {} times less than plain PyTorch"),
    ("ratio_to_best_fixed", "is {} times as fast as the best fixed batch that survives"),
    ("measured_over_limit", "takes {} times the limit that the planner gave, from what it had measured"),
    ("makespan_to_alone", "takes {} times the sum of the times alone"),
    ("ratio_to_best", "takes {} times as long as the best single cut"),
)
OURS = ("mix", "ours")
CHECKED = "simulated_over_measured"
UNFINISHED = "This run was ended early: rows may be missing."


def headline(rows: Sequence[Row]) -> list[str]:
    """Sentences; the last tells what failed."""
    found = []
    for system in OURS:
        mine = [row for row in rows if row.system == system and not row.failed]
        said = [text.format(spread(values)) for key, text in RATIOS if (values := _values(mine, key))]
        if said:
            found.append(f"{system} {'; '.join(said)}.")
    if ratios := _values(rows, CHECKED):
        found.append(f"Simulated over measured time: {spread(ratios)}.")
    failed = sum(row.failed for row in rows)
    if failed:
        found.append(f"{failed} of {len(rows)} rows failed.")
    return found


def spread(values: Sequence[float]) -> str:
    """'2.1', or '0.9 to 5.3 (median 2.1)'."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high} (median {median(values):.3g})"


def _values(rows: Sequence[Row], key: str) -> list[float]:
    values: list[Any] = [row.get(key) for row in rows]
    return [float(value) for value in values if isinstance(value, int | float) and value > 0]
