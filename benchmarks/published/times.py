"""Run time against bandwidth: how many times as fast as without split execution, by rho."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.rows import Row, cell
from benchmarks.published.comparison import Figure, line, missing, said, span
from benchmarks.published.figures import HEADLINES, MODELS, PAPER, TIMES, TimePoint

OURS = "mix"
NEAR = 2.0
"""A rho outside of those that were run by more than this factor is not compared."""
Curve = Sequence[tuple[float, float]]
"""(rho, plain's seconds over the system's) of one network in one run, by rho."""
FIGURE = Figure(
    "time",
    "Run time against bandwidth",
    "e2e",
    "hapi bench e2e --model torchvision:alexnet --model torchvision:resnet18 --model torchvision:resnet50 "
    "--model torchvision:vgg11 --model torchvision:vgg19 --model torchvision:densenet121 --model torchvision:vit_b_16 "
    "--rho 0.015625 --rho 0.0625 --rho 0.25 --rho 1 --rho 4",
    "The published machines had GPUs, so bandwidths say little: compared is at the same rho, the baseline's link time "
    "over its compute time. Theirs is estimated from their logs: what the link explains of the baseline's seconds, "
    "over the rest. Their baseline reads image files and decodes them on the client, their servers had the images as "
    "tensors already; ours is PyTorch's DataLoader with boto3, and the server decodes. Ours are measured, or lie "
    "between two rhos of one run; where the nearest is more than twice as far away, nothing is compared.",
)


def compare(rows: Sequence[Row]) -> list[Row]:
    """A row per published run, with ours of the same network at the same rho."""
    curves = speedups(rows)
    found = []
    for point in TIMES:
        if point.model in curves:
            run, curve = nearest(curves[point.model], point.rho)
            ours, how = at(curve, point.rho)
            is_near = _away(curve, point.rho) <= NEAR
            found.append(
                line(
                    FIGURE,
                    point.model,
                    f"rho {point.rho:.2g}",
                    point.speedup,
                    ours if is_near else None,
                    published_text=f"{point.speedup:.3g}x ({regime(point)})",
                    ours_text=f"{ours:.3g}x ({how})",
                    says=said(ours / point.speedup, "as much gained")
                    if is_near
                    else f"not compared: {_command(point.model, [point.rho])}",
                    rho=point.rho,
                    run=run,
                    source=point.source,
                )
            )
    return [*found, *_headlines(curves), *_missing(curves)]


def _missing(curves: Mapping[str, Any]) -> list[Row]:
    """The published networks of which no run of ours is kept, if there is any at all."""
    found = []
    for model in MODELS if curves else ():
        points = [point for point in TIMES if point.model == model]
        if model not in curves:
            low, high = (end(point.rho for point in points) for end in (min, max))
            theirs = f"{span(point.speedup for point in points)}, at rho {low:.2g} to {high:.2g}"
            found.append(missing(FIGURE, model, theirs, _command(model, (point.rho for point in points))))
    return found


def _command(model: str, rhos: Iterable[float]) -> str:
    """The run that would have these rhos within reach: at quarters and fourfolds of 1, each the nearest."""
    steps = sorted({round(math.log(rho, 4)) for rho in rhos})
    words = " ".join(f"--rho {4.0**step:g}" for step in steps)
    return f"hapi bench e2e --model torchvision:{model} {words} --system plain --system mix"


def _headlines(curves: Mapping[str, Mapping[str, Curve]]) -> list[Row]:
    """The most and the least that was ever gained, theirs beside ours."""
    points = [(gain, rho, model) for model, runs in curves.items() for curve in runs.values() for rho, gain in curve]
    if not points:
        return []
    gain, rho, model = max(points)
    found = [
        line(
            FIGURE,
            model,
            name,
            claim,
            gain,
            published_text=f"{claim:g}x",
            ours_text=f"{gain:.3g}x (measured at rho {rho:.2g})",
            says=said(gain / claim, "as much gained"),
            source=PAPER,
        )
        for name, claim in HEADLINES
    ]
    least = min(TIMES, key=lambda point: point.speedup)
    gain, rho, model = min(points)
    lost = sum(point.speedup < 1 for point in TIMES)
    found.append(
        line(
            FIGURE,
            model,
            "at least",
            least.speedup,
            gain,
            published_text=f"{least.speedup:.3g}x ({least.model}, {regime(least)})",
            ours_text=f"{gain:.3g}x (measured at rho {rho:.2g})",
            says=f"slower than the baseline in {lost} of the {len(TIMES)} published runs here, "
            f"in {sum(point[0] < 1 for point in points)} of our {len(points)}",
            source=least.source,
        )
    )
    return found


def regime(point: TimePoint) -> str:
    """'0.05 Gbit/s, batch 8000, GPU client', as far as it is known."""
    batch = f", batch {point.batch}" if point.batch else ""
    client = f", {point.client} client" if point.client else ""
    return f"{point.gbit_per_s:g} Gbit/s{batch}{client}"


def speedups(rows: Sequence[Row], system: str = OURS) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Network -> run -> its curve, each ratio of two rows of that run; the newest run last.

    Where several runs met a rho only the newest has it.
    """
    plain = {(row.get("run"), *cell(row)): row.seconds for row in rows if row.system == PLAIN and row.seconds}
    newest: dict[tuple[str, float], tuple[str, float]] = {}
    order: dict[str, int] = {}
    for row in rows:
        run = str(row.get("run") or "")
        base = plain.get((row.get("run"), *cell(row)))
        if row.system == system and row.rho and row.seconds and base and row.epochs in (None, 1):
            newest[row.model, row.rho] = run, base / row.seconds
            order.setdefault(run, len(order))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (model, rho), (run, gain) in sorted(newest.items(), key=lambda item: (order[item[1][0]], item[0][1])):
        found.setdefault(model, {}).setdefault(run, []).append((rho, gain))
    return found


def nearest(runs: Mapping[str, Curve], rho: float) -> tuple[str, Curve]:
    """(run, its curve) of the one that comes nearest to a rho; the newest of those that have it between two points."""
    return min(reversed(list(runs.items())), key=lambda item: _away(item[1], rho))


def _away(curve: Curve, rho: float) -> float:
    """By which factor a rho lies outside of a curve; 1 within it."""
    return max(1.0, curve[0][0] / rho, rho / curve[-1][0])


def at(curve: Curve, rho: float) -> tuple[float, str]:
    """(value at a rho, how it was found): between neighbours both axes are logarithmic; outside, the nearest."""
    if rho <= curve[0][0] or rho >= curve[-1][0]:
        nearest = curve[0] if rho <= curve[0][0] else curve[-1]
        return nearest[1], f"measured at rho {nearest[0]:.2g}" + ("" if nearest[0] == rho else ", the nearest")
    (low, first), (high, second) = next(
        (left, right) for left, right in itertools.pairwise(curve) if left[0] <= rho <= right[0]
    )
    if low == high:
        return second, f"measured at rho {high:.2g}"
    part = math.log(rho / low) / math.log(high / low)
    return first * (second / first) ** part, f"between rho {low:.2g} and {high:.2g}"
