"""The picture of `hapi bench faults`: seconds that each fault cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.bench.report import PALE, QUIET, colour
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Plot
from hapi.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots() -> list[Plot]:
    """One."""
    caption = "Seconds of all epochs. Grey is what the undisturbed training takes, the rest what the fault cost."
    return [Plot("faults", "What a fault costs", draw_faults, caption, (9.0, 4.5))]


def draw_faults(figure: Figure, rows: Sequence[Row]) -> None:
    """A bar per row that was trained to its end; what ended early is named."""
    axes = figure.subplots()
    for place, row in enumerate(rows):
        seconds, lost = row.seconds or 0.0, max(0.0, row.get("lost_seconds") or 0.0)
        axes.barh(place, seconds - lost, 0.6, color=PALE)
        axes.barh(place, lost, 0.6, left=seconds - lost, color=colour(row.system))
        told = format_seconds(seconds) if row.seconds else _without_end(row)
        axes.annotate(told, (seconds, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                      color=QUIET)  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{row.get('fault')} ({row.system})" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("time of all epochs")
    axes.xaxis.set_major_formatter(lambda value, _: format_seconds(value) if value else "0")


def _without_end(row: Row) -> str:
    """What became of a training that was not trained to its end."""
    if row.failed:
        return "failed"
    return "did not survive" if row.get("survived") is False else "ended with an error, as it must"
