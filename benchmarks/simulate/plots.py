"""The pictures of `hapi bench simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.report import INK, colour
from benchmarks.bench.run import Plot
from hapi.units import format_bandwidth, format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.bench.rows import Row

SYSTEMS = ("none", "all", "mix")
CONDITIONS = ("steady", "failures", "autoscaling")


def plots() -> list[Plot]:
    """Of simulated clusters; of several networks the first is drawn."""
    size = (10.0, 4.4)
    return [
        Plot(
            "makespan",
            "From the first start to the last end",
            _draw_makespan,
            "With nodes that neither fail nor are added, by the number of storage nodes and tenants.",
            size,
        ),
        Plot(
            "slowdown",
            "How much slower than alone",
            _draw_slowdown,
            "A tenant's time over that with a node and its link to itself, with mix. Dots are the mean tenant, dashes "
            "the worst.",
            size,
        ),
        Plot(
            "cost",
            "What it costs",
            _draw_cost,
            "Left: hours that storage nodes were up or starting, with mix. Right: bytes that left them, steady.",
            size,
        ),
    ]


def check_plots() -> list[Plot]:
    """Of the simulation beside the testbed."""
    return [
        Plot("check", "Simulated over measured seconds", _draw_check, "The band is 10 % on either side.", (10.0, 4.2))
    ]


def _first_model(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.model == rows[0].model and not row.failed]


def _places(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return sorted({(row.get("nodes"), row.get("tenants")) for row in rows})


def _name(axes: Any, places: Sequence[tuple[int, int]]) -> None:
    axes.set_xticks(range(len(places)), [f"{nodes}\n{tenants}" for nodes, tenants in places], fontsize=9)
    axes.set_xlabel("storage nodes above tenants")


def _bars(axes: Any, rows: Sequence[Row], key: str, by: str, names: Sequence[str]) -> None:
    """Groups of bars, a group per cluster; `by` tells the bars of a group apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    places = _places(rows)
    width = 0.84 / len(names)
    for position, name in enumerate(names):
        mine = [row for row in rows if row.get(by) == name and row.get(key)]
        axes.bar(
            [
                places.index((row.get("nodes"), row.get("tenants"))) + width * (position - (len(names) - 1) / 2)
                for row in mine
            ],
            [row.get(key) for row in mine],
            width=0.94 * width,
            label=name,
            color=colour(name, position),
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _name(axes, places)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


def _draw_makespan(figure: Figure, rows: Sequence[Row]) -> None:
    axes: Any = figure.subplots()
    steady = [row for row in _first_model(rows) if row.get("condition") == "steady"]
    _bars(axes, steady, "seconds", "system", SYSTEMS)
    axes.yaxis.set_major_formatter(lambda value, _: format_seconds(value))
    axes.set_ylabel("time until the last tenant is done")


def _draw_cost(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2)
    mine = _first_model(rows)
    _bars(left, [row for row in mine if row.system == "mix"], "node_hours", "condition", CONDITIONS)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set_ylabel("node-hours")
    _bars(right, [row for row in mine if row.get("condition") == "steady"], "bytes", "system", SYSTEMS)
    right.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    right.set_ylabel("sent by the nodes")


def _draw_check(figure: Figure, rows: Sequence[Row]) -> None:
    axes: Any = figure.subplots()
    shown = [row for row in rows if row.get("simulated_over_measured")]
    groups = list(dict.fromkeys((row.model, row.bandwidth_bits_per_s, row.get("cut")) for row in shown))
    counts = sorted({row.get("tenants") for row in shown})
    axes.axhspan(0.9, 1.1, color=colour("mix"), alpha=0.12)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    for place, (model, rate, cut) in enumerate(groups):
        mine = [row for row in shown if (row.model, row.bandwidth_bits_per_s, row.get("cut")) == (model, rate, cut)]
        axes.plot(
            [counts.index(row.get("tenants")) + 0.06 * (place - (len(groups) - 1) / 2) for row in mine],
            [row.get("simulated_over_measured") for row in mine],
            "o",
            label=f"{model}, {format_bandwidth(rate or 0.0)}, {cut}",
            color=colour("", place),
        )
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("tenants")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.75), max(high, 1.25))
    axes.set_ylabel("simulated / measured")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _draw_slowdown(figure: Figure, rows: Sequence[Row]) -> None:
    axes: Any = figure.subplots()
    mine = [row for row in _first_model(rows) if row.system == "mix"]
    places = _places(mine)
    for position, condition in enumerate(CONDITIONS):
        part = [row for row in mine if row.get("condition") == condition]
        x = [places.index((row.get("nodes"), row.get("tenants"))) + 0.08 * (position - 1) for row in part]
        shade = colour(condition, position)
        axes.vlines(x, [row.get("mean_slowdown") for row in part], [row.get("worst_slowdown") for row in part],
                    color=shade, linewidth=1)  # fmt: skip
        axes.plot(x, [row.get("mean_slowdown") for row in part], "o", label=condition, color=shade)
        axes.plot(x, [row.get("worst_slowdown") for row in part], "_", markersize=12, color=shade)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("time over time alone")
    _name(axes, places)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
