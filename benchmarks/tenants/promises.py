"""What is promised of a server with many tenants, and whether a row keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.bench.rows import Row

MOST: Mapping[str, Mapping[str, tuple[float, str]]] = {
    "mixed": {"makespan_to_alone": (1.15, "makespan"), "worst_to_mean": (1.5, "fairness")},
    "same": {"makespan_to_alone": (1.3, "makespan"), "computed_per_sample": (1.0, "computed twice")},
    "beside": {"worst_batches_waited": (2.0, "wait")},
    "vanish": {"worst_batches_after": (2.0, "work goes on"), "held_bytes": (0.0, "memory held")},
}
"""Per part: key of the row -> (most, what is broken above it)."""
OURS = "ours"


def broken(row: Row) -> list[str]:
    """What a row breaks, in words: failures first."""
    found = ["failures"] if row.failed or row.get("failures") else []
    for key, (most, words) in MOST.get(row.get("part") or "", {}).items():
        value = row.get(key)
        if value is None or value > most:
            found.append(words)
    return found


def judged(rows: list[Row]) -> list[Row]:
    """Each row with `holds`. Ours fail with a broken promise; other policies promise nothing, so theirs fail only where
    nothing was measured."""
    found = []
    for row in rows:
        said = broken(row)
        found.append(
            row.filled(holds=", ".join(said) or "yes", failed=row.failed or (row.system == OURS and bool(said)))
        )
    return found
