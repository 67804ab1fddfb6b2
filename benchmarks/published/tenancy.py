"""Many tenants on one server: who fails, and what sharing costs."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench.kept import newest
from benchmarks.bench.rows import Row
from benchmarks.published.comparison import Figure, line
from benchmarks.published.figures import TENANT_POINTS, TENANTS, TenantPoint

FIGURE = Figure(
    "tenants",
    "Tenants at once",
    "tenants",
    "hapi bench tenants",
    "Theirs: equal jobs of batch 1000 on two GPUs, without training on the clients; gained is over training altogether "
    "in the object store. Ours: different networks and cuts inside one memory budget, on one processor; "
    "the makespan is held against the sum of the jobs' times alone, where 1 is perfect sharing.",
)


def compare(rows: Sequence[Row]) -> list[Row]:
    """A row per published count, beside ours of the same count or the next larger one.

    Rows that failed belong to it, as far as they were measured: a promise was broken there.
    """
    mixed = [row for row in rows if row.get("part") == "mixed" and row.get("failures") is not None]
    ours = {row.get("tenants"): row for row in mixed if row.system == "ours"}
    same_run = {(row.get("run"), row.get("tenants")): row for row in mixed if row.system == "ours"}
    found = []
    for point in TENANT_POINTS if ours else ():
        count = min((count for count in ours if count >= point.tenants), default=max(ours))
        row = ours[count]
        others = [other for other in mixed if other.system != "ours" and other.get("tenants") == count]
        others = newest(others, "system")
        beside = "; ".join(_beside(other, same_run.get((other.get("run"), count))) for other in others)
        failed = int(row.get("failures") or 0)
        found.append(
            line(
                FIGURE,
                "",
                f"{point.tenants} tenants",
                point.split_failed / point.tenants,
                failed / count,
                published_text=_theirs(point),
                ours_text="; ".join(filter(None, (_ours(row, failed, count), beside))),
                says=_says(point, failed, count),
                tenants=point.tenants,
                source=TENANTS,
            )
        )
    return found


def _theirs(point: TenantPoint) -> str:
    failed = f"{point.split_failed} of {point.tenants} failed"
    if point.split_seconds is None or point.whole_seconds is None:
        return failed
    return f"{failed}, {point.split_seconds:.0f} s on average, {point.whole_seconds / point.split_seconds:.2f}x gained"


def _ours(row: Row, failed: int, count: int) -> str:
    ratio = row.get("makespan_to_alone")
    return f"{failed} of {count} failed" + ("" if ratio is None else f", {ratio:.2f} of the sum alone")


def _beside(other: Row, ours: Row | None) -> str:
    """`ours`: of the same run."""
    if other.get("failures"):
        return f"{other.system}: {other.get('failures')} failed"
    if ours is None:
        return f"{other.system}: none failed, in another run"
    return f"{other.system}: {(other.seconds or 0.0) / (ours.seconds or 1.0):.2f} times as long"


def _says(point: TenantPoint, failed: int, count: int) -> str:
    if point.split_failed and not failed:
        return "ours goes on where the published one fails"
    if failed:
        return f"ours fails for {failed}"
    return "none fails in either" + (f" (ours with {count})" if count != point.tenants else "")
