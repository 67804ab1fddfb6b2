"""Split quality: how often a policy's choice is the best cut, or within 5 % of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.bench.kept import newest
from benchmarks.bench.rows import Row
from benchmarks.published.comparison import Figure, line, missing, said, span
from benchmarks.published.figures import (
    NEAR,
    SPLIT_QUALITY,
    SPLIT_QUALITY_SOURCE,
    SPLIT_SWEEPS,
    SPLITS,
    SplitSweep,
)
from hapi.units import format_bandwidth

POLICIES = ("mix", "single", "paper", "paper-v1", "static", "none", "all")
CUT = "cut:"
FREEZE = "static"
"""The policy that always cuts at the last frozen layer."""
FIGURE = Figure(
    "quality",
    "Split quality",
    "sweep",
    "hapi bench sweep",
    "Cases are networks at bandwidths; the best is the fastest single cut of those measured. Theirs: GPU machines, "
    "training batch 1000, 1 and 12 Gbit/s. A mix may be faster than every single cut, and counts as within.",
)
Case = tuple[str, float | None]


def compare(rows: Sequence[Row]) -> list[Row]:
    """A row per policy over all cases, and of each network how much its worst cut and its freeze layer cost."""
    rows = newest(rows, "model", "bandwidth_bits_per_s")
    best, worst = extremes(rows)
    found = []
    for policy, ratios in ratios_by_policy(rows, best).items():
        part = sum(ratio <= NEAR for ratio in ratios.values()) / len(ratios)
        found.append(
            line(
                FIGURE,
                "",
                f"within 5 % of the best, {policy}",
                SPLIT_QUALITY,
                part,
                published_text=f"{100 * SPLIT_QUALITY:.1f} %",
                ours_text=f"{100 * part:.1f} % of {len(ratios)} cases",
                says=f"{100 * (part - SPLIT_QUALITY):+.1f} points",
                policy=policy,
                cases=len(ratios),
                source=SPLIT_QUALITY_SOURCE,
            )
        )
    frozen = ratios_by_policy(rows, best).get(FREEZE, {})
    worst_ratios = {case: worst[case] / best[case] for case in best if best[case]}
    for model in dict.fromkeys(sweep.model for sweep in SPLIT_SWEEPS):
        theirs = [sweep for sweep in SPLIT_SWEEPS if sweep.model == model]
        found += _most(model, "worst cut over the best", [(one.worst_ratio, one) for one in theirs], worst_ratios)
        found += _most(model, "freeze layer over the best", [(one.freeze_ratio, one) for one in theirs], frozen)
    ran = {model for model, _ in best}
    for model in dict.fromkeys(sweep.model for sweep in SPLIT_SWEEPS if ran and sweep.model not in ran):
        worst_cuts = span(sweep.worst_ratio for sweep in SPLIT_SWEEPS if sweep.model == model)
        command = f"hapi bench sweep --model {model} --resume --report benchmarks/results/sweep"
        found.append(missing(FIGURE, model, f"{worst_cuts}, the worst cut over the best", command))
    return found


def _most(model: str, what: str, theirs: Sequence[tuple[float, SplitSweep]], ratios: Mapping[Case, float]) -> list[Row]:
    """The largest ratio of a network, theirs and ours, each at its own bandwidth: those of different machines say
    little. Nothing without a case of ours."""
    ours = {case: ratio for case, ratio in ratios.items() if case[0] == model}
    if not ours:
        return []
    (_, rate), ratio = max(ours.items(), key=lambda item: item[1])
    largest, sweep = max(theirs, key=lambda item: item[0])
    return [
        line(
            FIGURE,
            model,
            f"{what}, at the bandwidth where that is most",
            largest,
            ratio,
            published_text=f"{largest:.2f}x at {sweep.gbit_per_s} Gbit/s",
            ours_text=f"{ratio:.3g}x at {format_bandwidth(rate or 0.0)}",
            says=said(ratio / largest, "as much to lose"),
            source=SPLITS,
        )
    ]


def extremes(rows: Sequence[Row]) -> tuple[dict[Case, float], dict[Case, float]]:
    """Case -> seconds of the fastest and of the slowest single cut; those given up as too slow count for the latter."""
    best: dict[Case, float] = {}
    worst: dict[Case, float] = {}
    for row in rows:
        if row.system.startswith(CUT) and row.seconds:
            case = (row.model, row.bandwidth_bits_per_s)
            worst[case] = max(worst.get(case, 0.0), row.seconds)
            if not row.get("is_bound"):
                best[case] = min(best.get(case, row.seconds), row.seconds)
    return best, worst


def ratios_by_policy(rows: Sequence[Row], best: Mapping[Case, float]) -> dict[str, dict[Case, float]]:
    """Policy -> case -> its seconds over the best cut's: as the sweep judged it, which does not take the least of noisy
    readings for the best; by the measured cuts for rows that were not judged."""
    found: dict[str, dict[Case, float]] = {}
    for row in rows:
        case = (row.model, row.bandwidth_bits_per_s)
        ratio = row.get("ratio_to_best") or row.get("ratio_to_best_single")
        if ratio is None and row.seconds and best.get(case):
            ratio = row.seconds / best[case]
        if row.system in POLICIES and row.bandwidth_bits_per_s and ratio:
            found.setdefault(row.system, {})[case] = float(ratio)
    return {policy: found[policy] for policy in POLICIES if policy in found}
