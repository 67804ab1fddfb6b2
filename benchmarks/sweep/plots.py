"""The pictures of `hapi bench sweep`: time over cuts with each policy's choice, shares within 5 %, and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.report import GRID, INK, QUIET, colour
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Plot
from benchmarks.sweep.judgement import CUT, EVERY
from hapi.units import format_bandwidth, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {"none": "<", "all": ">", "static": "s", "paper": "D", "paper-v1": "d", "single": "o", "mix": "*"}


def plots() -> list[Plot]:
    """In the order of the page."""
    return [
        Plot(
            "cuts",
            "Seconds per sample over the cuts",
            draw_cuts,
            "A panel per network and bandwidth. The line is what was measured at each cut, hollow points are bounds of "
            "cuts that were given up; the dashed line is the limit. Marks are the policies' choices; mix stands where "
            "most of its samples are cut, at the time of the whole mix.",
            (13.0, 2.6),
        ),
        Plot(
            "policies",
            "How often a policy is near the best",
            draw_policies,
            "Share of the cases (network and bandwidth) in which a policy is within 5 % and 10 % of the best single "
            "cut, and within 5 % of the limit.",
            (10.0, 4.2),
        ),
        Plot(
            "predicted",
            "Measured against predicted",
            draw_predicted,
            "Every cut that was measured to the end, at every bandwidth, by what the planner expected to set its pace.",
            (6.5, 5.5),
        ),
    ]


def draw_cuts(figure: Figure, rows: Sequence[Row]) -> None:
    """Networks down, bandwidths across."""
    cuts = [row for row in rows if row.system.startswith(CUT)]
    models = list(dict.fromkeys(row.model for row in cuts))
    rates = sorted({row.bandwidth_bits_per_s for row in cuts if row.bandwidth_bits_per_s})
    if not models or not rates:
        figure.text(0.5, 0.5, "nothing to show", ha="center", color=QUIET)
        return
    figure.set_size_inches(max(5.0, 2.3 * len(rates)), 2.4 * len(models) + 0.6)
    grid = figure.subplots(len(models), len(rates), squeeze=False, sharey="row")
    for axes_row, model in zip(grid, models, strict=True):
        for axes, rate in zip(axes_row, rates, strict=True):
            here = [row for row in rows if row.model == model and row.bandwidth_bits_per_s == rate and not row.failed]
            _panel(axes, here)
            axes.set_title(f"{model}, {format_bandwidth(rate)}", fontsize=8)
        axes_row[0].set_ylabel("seconds per sample", fontsize=8)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    columns = max(3, int(figure.get_figwidth() / 1.4))
    figure.legend(handles=list(handles.values()), labels=list(handles), loc="outside lower center", ncols=columns,
                  fontsize=8)  # fmt: skip


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    cuts = [row for row in rows if row.system.startswith(CUT)]
    names = [row.system.removeprefix(CUT) for row in cuts]
    axes.plot(range(len(cuts)), [_seconds(row) for row in cuts], "-", color=GRID, linewidth=1.5, zorder=1)
    for is_bound, face in ((False, QUIET), (True, "white")):
        part = [(place, _seconds(row)) for place, row in enumerate(cuts) if bool(row.get("is_bound")) == is_bound]
        if part:
            places, seconds = zip(*part, strict=True)
            axes.scatter(places, seconds, s=9, facecolors=face, edgecolors=QUIET, linewidths=0.8, zorder=2)
    chosen = [row for row in rows if not row.system.startswith(CUT) and row.seconds and row.get("cuts")]
    for row in chosen:
        most = max(row.get("cuts"), key=lambda cut: cut["share"])
        axes.scatter(
            names.index(most["name"]), _seconds(row), s=70 if row.system == "mix" else 34, label=row.system,
            marker=MARKS.get(row.system, "o"), facecolors="none" if row.system != "mix" else colour("mix"),
            edgecolors=colour(row.system), linewidths=1.4, zorder=5 if row.system == "mix" else 4,
        )  # fmt: skip
    limits = [row.limit_seconds for row in chosen if row.limit_seconds]
    if limits:
        axes.axhline(min(limits), color=INK, linewidth=0.9, linestyle="--", label="limit")
    axes.set_yscale("log")
    _in_seconds(axes.yaxis)
    axes.tick_params(axis="both", labelsize=7)
    axes.set_xticks([0, len(cuts) - 1], ["input", "output"])


def draw_policies(figure: Figure, rows: Sequence[Row]) -> None:
    """Three bars per policy."""
    summed = [row for row in rows if row.model == EVERY]
    axes = figure.subplots()
    shades = (("within_5_of_best", "within 5 % of the best cut", 1.0),
              ("within_10_of_best", "within 10 %", 0.6),
              ("within_5_of_limit", "within 5 % of the limit", 0.3))  # fmt: skip
    for offset, (key, label, strength) in enumerate(shades):
        values = [row.get(key) or 0.0 for row in summed]
        places = [place + 0.27 * (offset - 1) for place in range(len(summed))]
        axes.bar(places, values, 0.25, color=[colour(row.system) for row in summed], alpha=strength, label=label)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{100 * value:.0f}", (place, value), xytext=(0, 2), textcoords="offset points",
                          ha="center", fontsize=8, color=QUIET)  # fmt: skip
    axes.axhline(0.95, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(summed)), [row.system for row in summed])
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.12), ncols=3)


def draw_predicted(figure: Figure, rows: Sequence[Row]) -> None:
    """A point per cut and bandwidth, and the line where both are equal."""
    whole = [row for row in rows if row.system.startswith(CUT) and row.seconds]
    cuts = [row for row in whole if not row.get("is_bound") and not row.get("is_carried")]
    axes = figure.subplots()
    for place, resource in enumerate(("server", "link", "client")):
        part = [row for row in cuts if _busiest(row) == resource]
        axes.scatter([row.get("predicted_seconds") for row in part], [_seconds(row) for row in part], s=14, alpha=0.7,
                     color=colour(resource, place), label=f"{resource} sets the pace")  # fmt: skip
    if cuts:
        ends = [min(map(_seconds, cuts)), max(map(_seconds, cuts))]
        axes.plot(ends, ends, color=INK, linewidth=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        _in_seconds(axis)
    axes.set_xlabel("predicted seconds per sample")
    axes.set_ylabel("measured seconds per sample")
    figure.legend(loc="outside lower center", ncols=3)


def _in_seconds(axis: Any) -> None:
    """Labels at 1, 2 and 5 of each power of ten: a narrow range has some, too."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: format_seconds(value))
    axis.set_minor_formatter(NullFormatter())


def _busiest(row: Row) -> str:
    costs = {name: row.get(f"{name}_seconds") or 0.0 for name in ("server", "link", "client")}
    return max(costs, key=lambda name: costs[name])


def _seconds(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds
