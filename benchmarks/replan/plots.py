"""The pictures of `hapi bench replan`: what each phase reached, and samples per second as the link changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.report import INK, QUIET, colour
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Plot
from hapi.units import format_bandwidth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BIN_SECONDS = 1.0


def plots() -> list[Plot]:
    """In the order of the page."""
    course = "Batches as they came, settling included; a dotted line is a change of the plan."
    return [
        Plot("rates", "Samples per second in each phase of the link", draw_rates, "Once settled.", (9.0, 4.2)),
        Plot("course", "Samples per second as the link drops and comes back", draw_course, course, (10.0, 4.2)),
    ]


def draw_rates(figure: Figure, rows: Sequence[Row]) -> None:
    """A bar per system and phase, with the limit of each phase."""
    axes: Any = figure.subplots()
    shown = [row for row in rows if not row.failed]
    phases = _phases(rows)
    systems = list(dict.fromkeys(row.system for row in rows))
    width = 0.8 / max(1, len(systems))
    for place, system in enumerate(systems):
        mine = [row for row in shown if row.system == system]
        x = [phases.index(row.get("phase")) + (place - (len(systems) - 1) / 2) * width for row in mine]
        rates = [row.get("samples_per_s") for row in mine]
        axes.bar(x, rates, 0.92 * width, label=system, color=colour(system, place))
        for at, rate in zip(x, rates, strict=True):
            axes.annotate(f"{rate:.3g}", (at, rate), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=8, color=QUIET)  # fmt: skip
    for at, phase in enumerate(phases):
        limits = [row.get("limit_samples_per_s") for row in shown if row.get("phase") == phase]
        if limits:
            name = "limit" if at == 0 else None
            axes.hlines(limits[0], at - 0.45, at + 0.45, colors=INK, linestyles="dashed", linewidth=1.1, label=name)
    links = {row.get("phase"): row.bandwidth_bits_per_s or 0.0 for row in rows}
    names = [f"{phase}\n{format_bandwidth(links[phase])}" if links[phase] else phase for phase in phases]
    axes.set_xticks(range(len(phases)), names)
    axes.set_ylabel("samples per second")
    axes.margins(y=0.12)
    if rows:
        figure.legend(loc="outside lower center", ncols=8)


def draw_course(figure: Figure, rows: Sequence[Row]) -> None:
    """A line per system over the seconds since the first phase began."""
    axes: Any = figure.subplots()
    shown = [row for row in rows if not row.failed and row.get("batches")]
    for place, system in enumerate(dict.fromkeys(row.system for row in shown)):
        mine = [row for row in shown if row.system == system]
        start = mine[0].get("begin")
        points = [(row.get("begin") - start + at, samples) for row in mine for at, samples in row.get("batches")]
        axes.plot(*_rates(points), color=colour(system, place), linewidth=1.8, label=system)
        changes = [change["at"] - start for row in mine for change in row.get("history") or ()]
        for at in changes:
            axes.axvline(at, color=colour(system, place), linestyle=":", linewidth=1.0)
        if place == 0:
            _name_phases(axes, mine, start)
    axes.set_xlabel("seconds")
    axes.set_ylabel("samples per second")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    if shown:
        figure.legend(loc="outside lower center", ncols=8)


def _name_phases(axes: Any, rows: Sequence[Row], start: float) -> None:
    """Where each phase began, above the lines, and its limit across it."""
    begins = [row.get("begin") - start for row in rows]
    ends = [*begins[1:], max(rows[-1].get("batches"))[0] + begins[-1]]
    for number, (row, begin, end) in enumerate(zip(rows, begins, ends, strict=True)):
        axes.hlines(row.get("limit_samples_per_s"), begin, end, colors=INK, linestyles="dashed", linewidth=1.1,
                    label="limit" if number == 0 else None)  # fmt: skip
        told = f"{row.get('phase')}, {format_bandwidth(row.bandwidth_bits_per_s or 0.0)}"
        axes.annotate(told, (begin, 1.0), xycoords=("data", "axes fraction"), xytext=(4, 4),
                      textcoords="offset points", fontsize=8, color=QUIET)  # fmt: skip


def _rates(points: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """(seconds, samples per second) from (seconds, samples so far), over at least a second each."""
    at, rates = [], []
    began, before = points[0]
    for seconds, samples in points[1:]:
        if seconds - began >= BIN_SECONDS:
            at.append((seconds + began) / 2)
            rates.append((samples - before) / (seconds - began))
            began, before = seconds, samples
    return at, rates


def _phases(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row.get("phase")) for row in rows))
