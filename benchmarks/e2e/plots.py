"""The pictures of `hapi bench e2e`: time against bandwidth, time per stage, bytes, and the cuts that were chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.report import INK, OTHERS, QUIET, colour
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Plot
from hapi.units import format_bandwidth, format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Situation = tuple[str, float | None]
"""A network, and the bits per second of its link."""

MOST_PANELS = 6
MOST_UPRIGHT = 8
"""Names of systems that have room beside one another."""
CHOSEN = f"Of more than {MOST_PANELS} networks and links some are drawn; all are in rows.json."
STAGES = {
    "storage host, processor": "#2b6cb0",
    "link": "#f0b37e",
    "compute host, processor": "#8a4fbf",
}


def plots() -> list[Plot]:
    """In the order of the page."""
    return [
        Plot(
            "time",
            "Seconds against bandwidth",
            draw_time,
            "Seconds of all epochs, without start-up. The dashed line is the planner's limit of the two hosts and the "
            "link, from what it had measured before: whoever is faster found hosts faster than they were then.",
            (10.0, 4.6),
        ),
        Plot(
            "speedup",
            "How much faster than plain PyTorch",
            draw_speedup,
            "Plain's seconds over each system's, by rho: plain's link time over its compute time. Below the line a "
            "system is slower than plain.",
            (10.0, 4.4),
        ),
        Plot(
            "stages",
            "What was busy for how long",
            draw_stages,
            "Processor seconds of either host over the whole run, start-up included, and the seconds the link needs "
            f"for the bytes that crossed it; the dot is the time of the epochs. The three overlap in time. {CHOSEN}",
            (10.0, 5.2),
        ),
        Plot(
            "start",
            "Start-up and epochs",
            draw_start,
            "Wall-clock time of the client's process. Grey is start-up: imports, capture, upload, measuring, planning. "
            + CHOSEN,
            (10.0, 5.2),
        ),
        Plot(
            "bytes",
            "Bytes that the training received",
            draw_bytes,
            "In answer to requests for samples, all epochs.",
            (10.0, 4.6),
        ),
        Plot("cuts", "Where mix cut", draw_cuts, "Share of the samples by cut, at each bandwidth.", (10.0, 4.2)),
    ]


def limited(rows: Iterable[Row]) -> list[Row]:
    """Those that succeeded behind a link of a set rate."""
    return [row for row in rows if not row.failed and row.seconds and row.bandwidth_bits_per_s]


def draw_time(figure: Figure, rows: Sequence[Row]) -> None:
    """Lines over bandwidth, one panel per network; with only one bandwidth, bars."""
    _lines(figure, limited(rows), lambda row: row.bandwidth_bits_per_s, lambda row: row.seconds, format_bandwidth,
           "seconds", limit=True)  # fmt: skip


def draw_speedup(figure: Figure, rows: Sequence[Row]) -> None:
    """Lines over rho, one panel per network; with only one rho, bars."""
    shown = [row for row in limited(rows) if row.get("ratio_to_plain") and row.rho and row.system != PLAIN]
    _lines(figure, shown, lambda row: row.rho, lambda row: row.get("ratio_to_plain"), lambda rho: f"rho {rho:.3g}",
           "times as fast as plain", limit=False)  # fmt: skip


def draw_bytes(figure: Figure, rows: Sequence[Row]) -> None:
    """Bytes over bandwidth, one panel per network."""
    _lines(figure, limited(rows), lambda row: row.bandwidth_bits_per_s, lambda row: row.bytes, format_bandwidth,
           "bytes", limit=False, write=format_bytes)  # fmt: skip


def draw_stages(figure: Figure, rows: Sequence[Row]) -> None:
    """Three bars per system: storage processor, link, client processor; one panel per situation."""

    def panel(axes: Axes, group: list[Row]) -> None:
        for place, row in enumerate(group):
            crossed = row.get("link_bytes_to_compute") or row.bytes or 0
            busy = (
                row.get("storage_cpu_seconds") or 0.0,
                8 * crossed / (row.bandwidth_bits_per_s or 1.0),
                row.get("client_cpu_seconds") or 0.0,
            )
            for offset, (seconds, shade) in enumerate(zip(busy, STAGES.values(), strict=True)):
                axes.barh(place + 0.27 * (offset - 1), seconds, 0.25, color=shade)
            axes.plot(row.seconds or 0.0, place, "o", color=INK, markersize=5, zorder=5)
        handles = [_patch(shade, name) for name, shade in STAGES.items()]
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=3) if axes is first(figure) else None

    _panels(figure, limited(rows), panel)


def draw_start(figure: Figure, rows: Sequence[Row]) -> None:
    """Start-up and epochs, one bar per system."""

    def panel(axes: Axes, group: list[Row]) -> None:
        for place, row in enumerate(group):
            start = row.get("start_seconds") or 0.0
            axes.barh(place, start, 0.6, color="#d5dbe1")
            axes.barh(place, row.seconds or 0.0, 0.6, left=start, color=colour(row.system))
            axes.annotate(format_seconds(start + (row.seconds or 0.0)), (start + (row.seconds or 0.0), place),
                          xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=QUIET)  # fmt: skip
        axes.margins(x=0.14)

    _panels(figure, limited(rows), panel)


def draw_cuts(figure: Figure, rows: Sequence[Row]) -> None:
    """Stacked shares over bandwidth for `mix` (or what planned instead), one panel per network."""
    planned = [row for row in limited(rows) if row.get("cuts") and row.system in ("mix", "single")]
    planned = [row for row in planned if row.system == "mix"] or planned
    groups = _grouped(planned, lambda row: row.model)
    for axes, (model, group) in zip(_axes(figure, len(groups)), groups.items(), strict=True):
        names = list(dict.fromkeys(cut["name"] for row in group for cut in row.get("cuts")))
        ordered = sorted(group, key=lambda row: row.bandwidth_bits_per_s or 0.0)
        bottoms = [0.0] * len(ordered)
        for number, name in enumerate(names):
            shares = [sum(cut["share"] for cut in row.get("cuts") if cut["name"] == name) for row in ordered]
            axes.bar(range(len(ordered)), shares, 0.62, bottom=bottoms, color=OTHERS[number % len(OTHERS)], label=name)
            bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
        rates = [format_bandwidth(row.bandwidth_bits_per_s or 0.0) for row in ordered]
        axes.set_xticks(range(len(ordered)), rates, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.7, len(ordered) - 0.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_title(model)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=2, fontsize=8)
    if figure.axes:
        first(figure).set_ylabel("share of the samples")


def first(figure: Figure) -> Axes:
    """The first panel."""
    return figure.axes[0]


def _lines(
    figure: Figure, rows: list[Row], across: Any, upward: Any, name: Any, label: str, *, limit: bool, write: Any = None
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    groups = _grouped(rows, lambda row: row.model)
    handles: dict[str, Any] = {}
    for axes, (model, group) in zip(_axes(figure, len(groups)), groups.items(), strict=True):
        places = sorted({across(row) for row in group})
        for number, (system, own) in enumerate(_grouped(group, lambda row: row.system).items()):
            own = sorted(own, key=across)
            shade = colour(system, number)
            if len(places) == 1:
                axes.bar(number, upward(own[0]), 0.7, color=shade)
                axes.annotate((write or _short)(upward(own[0])), (number, upward(own[0])), xytext=(0, 3),
                              textcoords="offset points", ha="center", fontsize=8, color=QUIET)  # fmt: skip
                continue  # the bar's own label says whose it is
            width = 2.6 if system == "mix" else 1.6
            (handles[system],) = axes.plot(
                [across(row) for row in own], [upward(row) for row in own], "o-", color=shade, linewidth=width,
                markersize=4.5, label=system, zorder=4 if system == "mix" else 3,
            )  # fmt: skip
        bounds = {across(row): row.limit_seconds for row in group if row.limit_seconds} if limit else {}
        if bounds:
            xs = sorted(bounds) if len(places) > 1 else [-0.5, len({row.system for row in group}) - 0.5]
            ys = [bounds[x] for x in xs] if len(places) > 1 else [next(iter(bounds.values()))] * 2
            (handles["limit"],) = axes.plot(xs, ys, "--", color=INK, linewidth=1.1, label="limit", zorder=5)
        axes.set_title(model)
        if len(places) > 1:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(places, [name(place) for place in places], rotation=30, ha="right", fontsize=8)
            axes.xaxis.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            systems = list(_grouped(group, lambda row: row.system))
            turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if len(systems) > MOST_UPRIGHT else {}
            axes.set_xticks(range(len(systems)), systems, **turned)
            axes.set_title(f"{model} at {name(places[0])}")
        axes.yaxis.set_major_formatter(lambda value, _: (write or _short)(value))
        if not limit and "fast" in label:
            axes.axhline(1.0, color=INK, linewidth=0.8)
    if figure.axes:
        for axes in figure.axes:
            axes.set_ylabel(label if axes.get_subplotspec().colspan.start == 0 else "")  # type: ignore[union-attr]
        if handles:
            figure.legend(handles=list(handles.values()), labels=list(handles), loc="outside lower center", ncols=8)


def _panels(figure: Figure, rows: list[Row], panel: Any) -> None:
    """One panel per situation, with a bar place per system."""
    groups = _grouped(rows, lambda row: (row.model, row.bandwidth_bits_per_s))
    shown = spread_out(list(groups))
    for axes, (model, rate) in zip(_axes(figure, len(shown)), shown, strict=True):
        group = groups[model, rate]
        panel(axes, group)
        axes.set_yticks(range(len(group)), [row.system for row in group])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.xaxis.set_major_formatter(lambda value, _: format_seconds(value) if value else "0")
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(f"{model}, {format_bandwidth(rate or 0.0)}", fontsize=10)


def spread_out(situations: Sequence[Situation], most: int = MOST_PANELS) -> list[Situation]:
    """At most so many, of the first network at its first link, of the second at its second, and so on, in turn."""
    turns: dict[Situation, tuple[int, int]] = {}
    for place, own in enumerate(_grouped(situations, lambda one: one[0]).values()):
        turns |= {one: ((number - place) % len(own), place) for number, one in enumerate(own)}
    chosen = sorted(turns, key=lambda one: turns[one])[:most]
    return [one for one in situations if one in chosen]


def _axes(figure: Figure, count: int) -> list[Axes]:
    """That many panels, three in a row."""
    if not count:
        figure.text(0.5, 0.5, "nothing to show", ha="center", color=QUIET)
        return []
    across = 2 if count == 4 else min(3, count)
    down = -(-count // across)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() * (1 if down == 1 else 0.75 * down))
    grid = figure.subplots(down, across, squeeze=False)
    panels = [axes for line in grid for axes in line]
    for axes in panels[count:]:
        axes.remove()
    return panels[:count]


def _grouped(rows: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _patch(shade: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=shade, label=name)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
