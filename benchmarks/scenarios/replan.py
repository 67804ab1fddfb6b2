"""`hapi bench replan`: a link that drops to a tenth and comes back while a client trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BANDWIDTH, BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times
from hapi.units import format_seconds, parse_bandwidth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.bench.rows import Row

COLUMNS = (
    MODEL,
    Column("phase", "phase", is_text=True),
    BANDWIDTH,
    SYSTEM,
    SAMPLES,
    SECONDS,
    BYTES,
    Column("samples_per_s", "samples/s", number),
    Column("limit_samples_per_s", "limit", number),
    Column("rate_to_limit", "of limit", times),
    Column("plan_changes", "changes"),
    Column("settling_seconds", "settling", format_seconds),
)
PHASE_SECONDS, QUICK_PHASE_SECONDS = 40.0, 10.0
SAMPLES_USED, QUICK_SAMPLES_USED = 640, 256
SAME = ("scenario", "model", "phase")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replan")(replan)


def replan(
    model: Annotated[str, typer.Option(help="torchvision:NAME or hf:PATH_OR_NAME.")] = "torchvision:mobilenet_v2",
    bandwidth: Annotated[str, typer.Option(help="Of the link before it drops, as in 100mbit.")] = "100mbit",
    factor: Annotated[float, typer.Option(min=1.0, help="How many times less it gives while it is dropped.")] = 10.0,
    seconds: Annotated[float | None, typer.Option(min=1.0, help="Of each phase.")] = None,
    system: options.Systems = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 32,
    data: options.DataOption = None,
    weights: options.Weights = "none",
    seed: options.Seed = 0,
    testbed: options.TestbedKind = "auto",
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Samples per second before the link drops to a tenth, while it is so, and once it is restored.

    `mix` follows the link, `mix-fixed` keeps the plan that it began with, `none` pushes nothing down. The client trains
    a head, epoch after epoch; neither side keeps features. Of each phase the spans that were under way when the link
    changed do not count, nor the five after them: these are `settling`. `limit` is what the planner's linear program
    gives for that phase's link, from one measurement of both tiers; `changes` are those of the plan in the phase.
    """
    plots = [Plot("rates", "Samples per second as the link drops and comes back", _draw)]
    with Bench(
        "replan", as_json=as_json, report=report, columns=COLUMNS, same=SAME, plots=plots, compare_with=()
    ) as bench:
        from benchmarks.replan.experiment import SYSTEMS, Settings, run

        settings = Settings(
            model=model,
            bits_per_s=parse_bandwidth(bandwidth),
            factor=factor,
            phase_seconds=seconds or (QUICK_PHASE_SECONDS if quick else PHASE_SECONDS),
            samples=samples or (QUICK_SAMPLES_USED if quick else SAMPLES_USED),
            systems=tuple(system or SYSTEMS),
            batch_size=batch_size,
            data=data,
            weights=weights,
            seed=seed,
            testbed=testbed,
        )
        run(settings, bench)


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    from benchmarks.bench.report import colour

    axes = figure.subplots()
    phases = list(dict.fromkeys(row.get("phase") for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    width = 0.8 / max(1, len(systems))
    for place, system in enumerate(systems):
        mine = [row for row in rows if row.system == system and not row.failed]
        x = [phases.index(row.get("phase")) + (place - (len(systems) - 1) / 2) * width for row in mine]
        axes.bar(x, [row.get("samples_per_s") for row in mine], width, label=system, color=colour(system, place))
    for at, phase in enumerate(phases):
        limits = [row.get("limit_samples_per_s") for row in rows if row.get("phase") == phase and not row.failed]
        if limits:
            axes.hlines(limits[0], at - 0.45, at + 0.45, colors="black", linestyles="dashed")
    axes.set_xticks(range(len(phases)), phases)
    axes.set_ylabel("samples/s (dashed: the limit)")
    axes.legend()
