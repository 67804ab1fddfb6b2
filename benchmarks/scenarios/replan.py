"""`hapi bench replan`: a link that drops to a tenth and comes back while a client trains."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench
from benchmarks.bench.table import BANDWIDTH, BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times
from hapi.units import format_seconds, parse_bandwidth

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
PHASE_SECONDS, QUICK_PHASE_SECONDS = 20.0, 5.0
SAMPLES_USED, QUICK_SAMPLES_USED = 160, 128
QUICK_SYSTEMS = ("mix", "none")
SAME = ("scenario", "model", "phase")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replan")(replan)


def replan(
    model: Annotated[str, typer.Option(help="torchvision:NAME or hf:PATH_OR_NAME.")] = "torchvision:mobilenet_v2",
    bandwidth: Annotated[str, typer.Option(help="Of the link before it drops, as in 100mbit.")] = "100mbit",
    factor: Annotated[float, typer.Option(min=1.0, help="How many times less it gives while it is dropped.")] = 10.0,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="Of the first phase; the others take 2 and 1.5 times as long.")
    ] = None,
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

    `mix` follows the link, `mix-fixed` keeps its first plan (left out by --quick), `none` pushes nothing down. The
    client trains a head on a stream without an end; neither side keeps features, and both run eagerly, so that no
    compiling in the background changes what is measured. Of each phase the spans that were under way when the link
    changed do not count, nor the five after them: these are `settling`. `limit` is what the planner's linear program
    gives for that phase's link, from one measurement of both tiers; `changes` are those of the plan in the phase.
    """
    from benchmarks.replan.plots import plots

    with Bench(
        "replan", as_json=as_json, report=report, columns=COLUMNS, same=SAME, plots=plots(), compare_with=()
    ) as bench:
        from benchmarks.replan.experiment import SYSTEMS, Settings, run

        settings = Settings(
            model=model,
            bits_per_s=parse_bandwidth(bandwidth),
            factor=factor,
            phase_seconds=seconds or (QUICK_PHASE_SECONDS if quick else PHASE_SECONDS),
            samples=samples or (QUICK_SAMPLES_USED if quick else SAMPLES_USED),
            systems=tuple(system or (QUICK_SYSTEMS if quick else SYSTEMS)),
            batch_size=batch_size,
            data=data,
            weights=weights,
            seed=seed,
            testbed=testbed,
        )
        run(settings, bench)
