"""The pictures of `hapi bench published`: theirs dashed and grey or bare, ours filled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.bench.kept import newest
from benchmarks.bench.report import INK, PALE, QUIET, colour
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Plot
from benchmarks.published import adaptation, quality, tenancy, times, traffic
from benchmarks.published.figures import ADAPTATION, SERIES, SPLIT_QUALITY, TENANT_POINTS, TIMES
from hapi.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEIRS = "#a7b1bb"
OURS = "ours"
NAMES = {"vit_b_16": "ViT"}
MOST_LEVEL = 4
SLANTED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
"""Of the names of more networks than that: level ones would run into one another."""


def plots(kept: dict[str, list[Row]]) -> list[Plot]:
    """`kept` are the rows of results by scenario; a figure without any is left out."""
    found = []
    if kept.get("e2e"):
        draw = partial(draw_time, kept["e2e"])
        found.append(Plot("time", "How many times as fast, by rho", draw, times.FIGURE.regime, (10.0, 4.6)))
    found.append(Plot("bytes", traffic.FIGURE.title, draw_bytes, traffic.FIGURE.regime, (10.0, 4.4)))
    if kept.get("memory"):
        draw = partial(draw_adaptation, kept["memory"])
        found.append(Plot("batches", adaptation.FIGURE.title, draw, adaptation.FIGURE.regime, (10.0, 4.4)))
    if kept.get("tenants"):
        draw = partial(draw_tenants, kept["tenants"])
        found.append(Plot("tenants", tenancy.FIGURE.title, draw, tenancy.FIGURE.regime, (10.0, 4.2)))
    if kept.get("sweep"):
        draw = partial(draw_quality, kept["sweep"])
        found.append(Plot("quality", quality.FIGURE.title, draw, quality.FIGURE.regime, (10.0, 3.6)))
    return found


def draw_time(ours: Sequence[Row], figure: Figure, rows: Sequence[Row]) -> None:
    """Their runs as points by rho (the bandwidth series as a line), ours as lines."""
    axes: Any = figure.subplots()
    series = sorted((run.rho, run.speedup) for run in SERIES)
    axes.plot(*zip(*series, strict=True), "s--", color=QUIET, markersize=5, label="published: alexnet, batch 8000, GPU")
    for client, mark in (("GPU", "x"), ("CPU", "+"), (None, "1")):
        points = [(run.rho, run.speedup) for run in TIMES if run not in SERIES and run.client == client]
        label = f"published: other runs, {client or 'unknown'} client"
        axes.plot(*zip(*points, strict=True), mark, color=QUIET, markersize=8, label=label)
    for place, (model, runs) in enumerate(times.speedups(ours).items()):
        label = f"ours: {NAMES.get(model, model)}"
        for curve in runs.values():  # a line never joins points of two runs
            axes.plot(*zip(*curve, strict=True), "o-", color=colour("", place), linewidth=2, markersize=5, label=label)
            label = "_"
    axes.axhline(1.0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlabel("rho: link time of the baseline over its compute time")
    axes.set_ylabel("times as fast as the baseline")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)


def draw_bytes(figure: Figure, rows: Sequence[Row]) -> None:
    """Four bars per network and batch: stored and split, theirs and ours."""
    axes: Any = figure.subplots()
    shown = [row for row in rows if row.get("name") == traffic.FIGURE.name and row.get("ours_bytes")]
    bars = (
        ("published_baseline_bytes", "published: stored", PALE),
        ("published_split_bytes", "published: split", QUIET),
        ("stored_bytes", "ours: stored", "#9ccdb9"),
        ("ours_bytes", "ours: split", colour("mix")),
    )
    for offset, (key, label, shade) in enumerate(bars):
        values = [(place, row.get(key)) for place, row in enumerate(shown) if row.get(key)]
        if values:
            xs = [place + 0.2 * (offset - 1.5) for place, _ in values]
            axes.bar(xs, [value for _, value in values], 0.19, label=label, color=shade)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    names = [f"{NAMES.get(row.model, row.model)}\nbatch {row.get('batch')}" for row in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=8)
    axes.set_ylabel("bytes per iteration")
    figure.legend(loc="outside lower center", ncols=4)


def draw_adaptation(ours: Sequence[Row], figure: Figure, rows: Sequence[Row]) -> None:
    """Left theirs: seconds by samples at once. Right ours: the rate of every batch policy over ours, by network."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for adapted, label, shade in ((False, "fixed batch", QUIET), (True, "adapted", INK)):
        seconds = [run.adapted_seconds if adapted else run.fixed_seconds for run in ADAPTATION]
        known = [(run.samples_at_once, value) for run, value in zip(ADAPTATION, seconds, strict=True) if value]
        size = 6 if adapted else 10  # where both ran, one lies upon the other
        left.plot(*zip(*known, strict=True), "o-", label=label, color=shade, markersize=size)
    died = [run.samples_at_once for run in ADAPTATION if run.samples_at_once in (7000, 8000)]
    left.plot(died, [60.0] * len(died), "x", color="#a8321f", markersize=8, label="fixed: out of memory")
    left.set_ylim(bottom=0)
    left.set_title("published: alexnet")
    left.set_xlabel("samples requested at once")
    left.set_ylabel("seconds")
    left.legend(fontsize=8)
    ours = [row for row in newest(ours, "model") if row.model]
    base = {row.model: row.get("images_per_s") for row in ours if row.system == OURS and row.get("images_per_s")}
    models = list(dict.fromkeys(row.model for row in ours))
    systems = list(dict.fromkeys(row.system for row in ours))
    width = 0.84 / max(1, len(systems))
    for place, system in enumerate(systems):
        shade = colour(system, place)
        label = system
        for row in ours:
            x = models.index(row.model) + width * (place - (len(systems) - 1) / 2)
            if row.system != system:
                continue
            if row.get("survived") == "yes" and row.get("images_per_s") and row.model in base:
                right.bar(x, row.get("images_per_s") / base[row.model], width, color=shade, label=label)
                label = "_"
            else:
                right.plot(x, 0.0, "x", color="#a8321f", markersize=7, clip_on=False, zorder=5)
    right.axhline(1.0, color=INK, linewidth=0.8)
    right.set_title("ours (x: killed)")
    names = [f"{NAMES.get(model, model)}\n{base[model]:.3g}/s" if model in base else model for model in models]
    is_crowded = len(models) > MOST_LEVEL
    right.set_xticks(range(len(models)), names, fontsize=8, **(SLANTED if is_crowded else {}))
    right.set_ylabel("images per second, of ours")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def draw_tenants(ours: Sequence[Row], figure: Figure, rows: Sequence[Row]) -> None:
    """Left theirs: mean seconds by tenants. Right ours: makespan over the sum of the times alone."""
    from matplotlib.ticker import MaxNLocator

    left, right = figure.subplots(1, 2)
    for key, label, shade in (("whole_seconds", "all in the store", THEIRS), ("split_seconds", "split", INK)):
        known = [(point.tenants, getattr(point, key)) for point in TENANT_POINTS if getattr(point, key)]
        left.plot(*zip(*known, strict=True), "o-", label=label, color=shade)
    failed = [point for point in TENANT_POINTS if point.split_failed]
    left.plot([point.tenants for point in failed], [600.0] * len(failed), "x", color="#a8321f", markersize=8,
              label="split: tenants failed")  # fmt: skip
    left.set_yscale("log")
    left.set_yticks([500, 1000, 2000, 5000], ["500", "1000", "2000", "5000"])
    left.minorticks_off()
    left.set_title("published")
    left.set_ylabel("mean seconds of a tenant")
    mixed = [row for row in newest(ours, "part", "system", "tenants") if row.get("part") == "mixed"]
    mixed = [row for row in mixed if row.get("makespan_to_alone")]
    for place, system in enumerate(dict.fromkeys(row.system for row in mixed)):
        mine = sorted((row.get("tenants"), row.get("makespan_to_alone"), row.get("failures") or 0)
                      for row in mixed if row.system == system)  # fmt: skip
        shade = colour(system, place)
        right.plot([one[0] for one in mine], [one[1] for one in mine], "o-", color=shade, label=system)
        bad = [one for one in mine if one[2]]
        right.plot([one[0] for one in bad], [one[1] for one in bad], "x", color="#a8321f", markersize=10)
    right.axhline(1.0, color=INK, linewidth=0.8)
    right.set_ylim(0, 1.08 * right.get_ylim()[1])
    right.set_title("ours (x: tenants failed)")
    right.set_ylabel("makespan over the sum of times alone")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("tenants at once")
        axes.legend(fontsize=8)


def draw_quality(ours: Sequence[Row], figure: Figure, rows: Sequence[Row]) -> None:
    """Part of the cases within 5 % of the best cut, theirs and every policy's of ours."""
    axes: Any = figure.subplots()
    shares = [("published", SPLIT_QUALITY, QUIET)]
    shares += [
        (row.get("policy"), row.get("ours"), colour(row.get("policy")))
        for row in rows
        if row.get("name") == quality.FIGURE.name and row.get("policy")
    ]
    for place, (name, part, shade) in enumerate(shares):
        axes.barh(place, part, 0.62, color=shade)
        axes.annotate(f"{100 * part:.1f} %", (part, place), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=9, color=QUIET)  # fmt: skip
        axes.text(-0.012, place, name, ha="right", va="center")
    axes.axvline(SPLIT_QUALITY, color=QUIET, linestyle="--", linewidth=1)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("cases in which the choice is within 5 % of the best cut")
