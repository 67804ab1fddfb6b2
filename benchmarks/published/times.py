"""Run time against bandwidth: how many times as fast as without split execution, by rho."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.kept import newest
from benchmarks.bench.rows import Row, cell
from benchmarks.published.comparison import Figure, line, missing, said, span
from benchmarks.published.figures import HEADLINES, MODELS, PAPER, TIMES, TimePoint

OURS = "mix"
NEAR = 2.0
"""A rho outside of those that were run by more than this factor is not compared."""
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
    "tensors already; ours is PyTorch's DataLoader with boto3, and the server decodes.",
)


def compare(rows: Sequence[Row]) -> list[Row]:
    """A row per published run, with ours of the same network at the same rho."""
    curves = speedups(rows)
    found = []
    for point in TIMES if curves else ():
        curve = curves.get(point.model)
        if curve:
            ours, how = at(curve, point.rho)
            is_near = curve[0][0] / NEAR <= point.rho <= curve[-1][0] * NEAR
            found.append(
                line(
                    FIGURE,
                    point.model,
                    f"rho {point.rho:.2g}",
                    point.speedup,
                    ours if is_near else None,
                    published_text=f"{point.speedup:.3g}x ({regime(point)})",
                    ours_text=f"{ours:.3g}x ({how})",
                    says=said(ours / point.speedup, "as much gained") if is_near else "not compared: no rho near it",
                    rho=point.rho,
                    source=point.source,
                )
            )
    return [*found, *_headlines(curves), *_missing(curves)]


def _missing(curves: Mapping[str, Any]) -> list[Row]:
    """The published networks of which no run of ours is kept, if there is any at all."""
    return [
        missing(
            FIGURE,
            model,
            f"{span(point.speedup for point in TIMES if point.model == model)}, at rho "
            f"{' to '.join(f'{end(point.rho for point in TIMES if point.model == model):.2g}' for end in (min, max))}",
            f"hapi bench e2e --model torchvision:{model} --rho 0.0625 --rho 0.25 --system plain --system mix",
        )
        for model in (MODELS if curves else ())
        if model not in curves
    ]


def _headlines(curves: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """The most that was ever gained, theirs beside ours."""
    points = [(gain, rho, model) for model, curve in curves.items() for rho, gain in curve]
    if not points:
        return []
    gain, rho, model = max(points)
    return [
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


def regime(point: TimePoint) -> str:
    """'0.05 Gbit/s, batch 8000, GPU client'."""
    return f"{point.gbit_per_s:g} Gbit/s, batch {point.batch}, {point.client} client"


def speedups(rows: Sequence[Row], system: str = OURS) -> dict[str, list[tuple[float, float]]]:
    """Network -> (rho, plain's seconds over the system's), by rho; where several runs met a rho, the newest counts."""
    plain = {(row.get("run"), *cell(row)): row.seconds for row in rows if row.system == PLAIN and row.seconds}
    found: dict[str, dict[float, float]] = {}
    for row in newest(rows, "model", "rho", "system", "epochs"):
        base = plain.get((row.get("run"), *cell(row)))
        if row.system == system and row.rho and row.seconds and base and row.epochs in (None, 1):
            found.setdefault(row.model, {})[row.rho] = base / row.seconds
    return {model: sorted(points.items()) for model, points in found.items()}


def at(curve: Sequence[tuple[float, float]], rho: float) -> tuple[float, str]:
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
