"""What can be said of the policies once all cuts are measured: how often each is near the best cut, and the limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean

from benchmarks.bench.rows import Row
from benchmarks.bench.table import BANDWIDTH, LIMIT, MODEL, SYSTEM, Column, share, times
from benchmarks.e2e.judgement import cuts_text
from benchmarks.sweep.uncertainty import NEAR, Verdict
from hapi.units import format_seconds

CUT = "cut:"
"""Before the name of a cut: the system of a row that is one cut, measured."""
EVERY = "every case"
"""The model of the rows that sum up a policy."""
PROMISED = ("mix", "single")
PROMISED_SHARE = 0.95

COLUMNS = (
    MODEL,
    BANDWIDTH,
    SYSTEM,
    Column("seconds", "per sample", format_seconds),
    Column("predicted_seconds", "predicted", format_seconds),
    LIMIT,
    Column("best_seconds", "best cut's", format_seconds),
    Column("ratio_to_best", "of best", times),
    Column("ratio_error", "+-", share),
    Column("is_near", "within 5 %", is_text=True),
    Column("ratio_to_limit", "of limit", times),
    Column("cases", "cases"),
    Column("within_5_of_best", "within 5 % of best", share),
    Column("open_cases", "open"),
    Column("within_10_of_best", "within 10 %", share),
    Column("within_5_of_limit", "within 5 % of limit", share),
    Column("mean_ratio", "mean of best", times),
    Column("worst_ratio", "worst", times),
    Column("noise", "noise", share),
    Column("holds", "holds", is_text=True),
    Column("best_cut", "best cut", is_text=True),
    Column("cuts", "chosen", cuts_text, is_text=True),
)


def is_shown(row: Row) -> bool:
    """Rows of single cuts are for the JSON and the plots: there are hundreds."""
    return not row.system.startswith(CUT)


def judged(rows: list[Row]) -> list[Row]:
    """The rows with each policy's ratios, and a row per policy over all cases at the end."""
    rows = [_judge(row) for row in rows]
    cases = [row for row in rows if is_shown(row) and not row.failed]
    systems = list(dict.fromkeys(row.system for row in cases))
    noise = quantile(differences(rows), 0.9)
    summed = (_sum_up(system, [row for row in cases if row.system == system]) for system in systems)
    return [*rows, *(row.filled(noise=noise) for row in summed)]


def differences(rows: Iterable[Row]) -> list[float]:
    """By how much two readings of one stream over one link differ, as a part of their mean; each and the next."""
    found = []
    for row in rows:
        if row.get("is_carried") or row.get("is_bound"):  # those are a faster link's, or none
            continue
        seconds = [one["seconds_per_sample"] for one in row.get("readings") or () if not one["is_bound"]]
        found += [2 * abs(one - other) / (one + other) for one, other in pairwise(seconds)]
    return found


def quantile(values: Sequence[float], part: float) -> float | None:
    """The least value that so large a part of them does not exceed; None for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def sentences(rows: list[Row]) -> list[str]:
    """What the rows, not judged yet, say of each policy in words."""
    found = []
    for row in judged(rows):
        best, limit = row.get("within_5_of_best"), row.get("within_5_of_limit")
        if row.model == EVERY and best is not None:
            near = f"{100 * best:.0f} % of {row.get('cases')} cases within 5 % of the best cut measured"
            most = "" if limit is None else f", {100 * limit:.0f} % within 5 % of the limit"
            open_cases = row.get("open_cases")
            told = f" ({open_cases} of the cases could be either by what their readings differ)" if open_cases else ""
            found.append(f"{row.system}: {near}{told}{most}.")
    if noise := differences(rows):
        middle, most_times = (100 * (quantile(noise, part) or 0.0) for part in (0.5, 0.9))
        found.append(
            f"Two readings of one stream differ by {middle:.1f} % (median of {len(noise)} pairs), nine of ten by no "
            f"more than {most_times:.1f} %; `ratio_error` of a row is the standard error that is left."
        )
    readings = [reading for row in rows for reading in row.get("readings") or () if not row.get("is_carried")]
    if others := quantile([reading.get("others", 0.0) + reading.get("low", 0.0) for reading in readings], 0.5):
        found.append(f"Beside them other work had {100 * others:.0f} % of the processors (median).")
    return found


def _judge(row: Row) -> Row:
    """A policy's ratios; above 1 is slower. At least so much, where its cut was given up."""
    if not is_shown(row) or row.failed or row.seconds is None:
        return row
    best = row.get("best_seconds")
    limit = row.limit_seconds
    return row.filled(
        **({"ratio_to_best": row.seconds / best} if best else {}),
        **({"ratio_to_limit": row.seconds / limit} if limit else {}),
    )


def _sum_up(system: str, cases: list[Row]) -> Row:
    ratios = [row.get("ratio_to_best") for row in cases if row.get("ratio_to_best") is not None]
    limits = [row.get("ratio_to_limit") for row in cases if row.get("ratio_to_limit") is not None]
    summary = Row("sweep", system, model=EVERY).filled(
        cases=len(cases),
        within_5_of_best=_share(ratios, NEAR),
        open_cases=sum(row.get("is_near") == Verdict.OPEN.value for row in cases),
        within_10_of_best=_share(ratios, 1.10),
        within_5_of_limit=_share(limits, NEAR),
        mean_ratio=fmean(ratios) if ratios else None,
        worst_ratio=max(ratios, default=None),
    )
    if system not in PROMISED:
        return summary
    kept = summary.get("within_5_of_best") or 0.0
    return summary.filled(holds="yes" if kept >= PROMISED_SHARE else f"no: below {100 * PROMISED_SHARE:.0f} %")


def _share(ratios: Iterable[float], most: float) -> float | None:
    """Part of the ratios that are at most so large; None for no ratios."""
    ratios = list(ratios)
    return sum(ratio <= most for ratio in ratios) / len(ratios) if ratios else None
