"""Batch sizes over time, as a server decided them, and the pictures of what batch policies came to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.run import Plot
from benchmarks.bench.table import number
from hapi.errors import HapiError
from hapi.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.bench.rows import Row
    from profiler.remote import ServerClient

EVERY_SECONDS = 0.1
MOST_CHANGES = 500
KILLED = "#a8321f"


@contextlib.contextmanager
def batch_sizes(client: ServerClient, every_seconds: float = EVERY_SECONDS) -> Iterator[list[tuple[float, int]]]:
    """(seconds since now, batch) at every change, of the prefix that the server used last, by its own status.

    A server that does not answer leaves a gap: whatever is wrong with it, the job that is measured tells.
    """
    changes: list[tuple[float, int]] = []
    ended, begun = threading.Event(), time.monotonic()

    def look() -> None:
        while not ended.wait(every_seconds):
            with contextlib.suppress(HapiError):
                prefixes = client.status().prefixes
                batch = prefixes[0].batch if prefixes else None
                if batch is not None and len(changes) < MOST_CHANGES and (not changes or changes[-1][1] != batch):
                    changes.append((time.monotonic() - begun, batch))

    thread = threading.Thread(target=look, name="hapi-bench-batches", daemon=True)
    thread.start()
    try:
        yield changes
    finally:
        ended.set()
        thread.join()
        if changes:
            changes.append((time.monotonic() - begun, changes[-1][1]))


def plots() -> list[Plot]:
    """Of `hapi bench memory`."""
    return [
        Plot(
            "rates",
            "Images per second of every batch policy, of the best fixed batch's",
            draw_rates,
            "Under the same limit of memory; a cross is a policy that did not survive it. Below: the best one's own.",
            (10.0, 4.2),
        ),
        Plot(
            "peaks",
            "Memory that was used, of the limit",
            draw_peaks,
            "The most that the control group held besides file cache; the mark is its limit.",
            (10.0, 4.2),
        ),
        Plot(
            "batches",
            "Batch sizes over time",
            draw_batches,
            "As the server itself decided, warm-up included; policies that decide nothing are left out.",
            (10.0, 4.6),
        ),
    ]


def draw_rates(figure: Figure, rows: Sequence[Row]) -> None:
    """Grouped bars, a group per network, whose best fixed batch is 1: networks differ forty times in speed."""
    from benchmarks.bench.report import INK

    axes: Any = _bars(figure, rows, "ratio_to_best_fixed")
    best: dict[str, float] = {}
    for row in rows:
        if row.system.startswith("fixed-") and row.get("survived") == "yes":
            best[row.model] = max(best.get(row.model, 0.0), row.get("images_per_s") or 0.0)
    labels = [f"{name.get_text()}\n{number(best.get(name.get_text(), 0.0))}/s" for name in axes.get_xticklabels()]
    axes.set_xticks(axes.get_xticks(), labels)
    axes.axhline(1.0, color=INK, linewidth=0.8, zorder=0)
    axes.set_ylabel("images per second, of the best fixed batch's")
    axes.set_ylim(bottom=0)


def draw_peaks(figure: Figure, rows: Sequence[Row]) -> None:
    """Grouped bars with the limit of each network as a line across its group."""
    from benchmarks.bench.report import INK

    axes: Any = _bars(figure, rows, "anonymous_peak_bytes")
    for place, model in enumerate(dict.fromkeys(row.model for row in rows)):
        limit = next((row.get("budget_bytes") for row in rows if row.model == model and row.get("budget_bytes")), None)
        if limit:
            axes.hlines(limit, place - 0.46, place + 0.46, color=INK, linewidth=1.4)
    axes.set_ylabel("memory at its peak")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value) if value else "0")


def _bars(figure: Figure, rows: Sequence[Row], key: str) -> Any:
    from matplotlib.patches import Patch

    from benchmarks.bench.report import colour

    axes: Any = figure.subplots()
    handles = []
    models = list(dict.fromkeys(row.model for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    width = 0.86 / max(1, len(systems))
    for place, system in enumerate(systems):
        shade = colour(system, place)
        handles.append(Patch(color=shade, label=system))
        for row in rows:
            x = models.index(row.model) + width * (place - (len(systems) - 1) / 2)
            if row.system == system and row.get("survived") == "yes" and row.get(key):
                axes.bar(x, row.get(key), 0.92 * width, color=shade)
            elif row.system == system:
                axes.plot(x, 0.0, "x", color=KILLED, markersize=7, clip_on=False, zorder=5)
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.6, len(models) - 0.4)
    figure.legend(handles=handles, loc="outside lower center", ncols=8)
    return axes


def draw_batches(figure: Figure, rows: Sequence[Row]) -> None:
    """Steps over seconds, a panel per network; one legend for all, beside the lines."""
    from benchmarks.bench.report import QUIET, colour

    shown = [row for row in rows if row.get("batches")]
    models = list(dict.fromkeys(row.model for row in shown))
    if not models:
        figure.text(0.5, 0.5, "nothing was decided", ha="center", color=QUIET)
        return
    systems = list(dict.fromkeys(row.system for row in shown))
    handles: dict[str, Any] = {}
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axes, model in zip(panels, models, strict=True):
        for row in (row for row in shown if row.model == model):
            seconds, sizes = zip(*row.get("batches"), strict=True)
            is_ours = row.system == "ours"
            (handles[row.system],) = axes.step(
                seconds, sizes, where="post", color=colour(row.system, systems.index(row.system)),
                linewidth=2.2 if is_ours else 1.6, zorder=4 if is_ours else 3,
            )  # fmt: skip
        axes.set_title(model)
        axes.set_xlabel("seconds")
        axes.set_xlim(left=0)
    panels[0].set_yscale("log", base=2)
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylabel("samples in a batch")
    figure.legend(handles=[handles[name] for name in systems], labels=systems, loc="outside lower center", ncols=8)
