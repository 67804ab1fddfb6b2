"""`hapi bench sweep`: every cut measured at every bandwidth, and how near to the best the policies' choices are."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("sweep")(sweep)


def sweep(
    model: options.Models = None,
    bandwidth: options.Bandwidths = None,
    system: options.Systems = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="To watch each cut once its pipeline has filled. (default 2.5, with --quick 2)"),
    ] = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 8,
    data: options.DataOption = None,
    weights: options.Weights = "none",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    testbed: options.TestbedKind = "auto",
    quick: options.Quick = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the rows that the report's folder has, and measure only other networks."),
    ] = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure every cut of some networks at some bandwidths, and tell how near to the best each policy's choice is.

    `seconds` of a row are those of one sample in a steady stream through the DataLoader. Before each bandwidth the
    network's profile is brought up to date (not with --quick); every policy chooses by it, `mix` is run as it was
    planned, and the choice of the others is looked up among the measured cuts. The last rows sum up: in how many of the
    cases (network and bandwidth) a policy is within 5 % of the best cut measured, and of the limit, the planner's
    linear program. Rows `cut:NAME` are in the JSON only. `mix` and `single` shall be within 5 % of the best in 95 % of
    the cases: `holds` says so. Their streams are read again, in turns with the cuts that they are held against, until
    that is certain of a case, 12 times and for 120 s at most; `+-` is the standard error that is left of a ratio, and
    `open` counts what stayed open.

    The whole takes some two hours on two cores, a network about twenty minutes, --quick (one bandwidth) two minutes.
    An interrupted run keeps its rows; with --resume it goes on, or `--model NAME --resume --report DIR` adds one
    network at a time to one page.
    """
    from benchmarks.sweep.experiment import Settings, run

    run(
        Settings(
            models=tuple(model or ()),
            bandwidths=tuple(bandwidth or ()),
            policies=tuple(system or ()),
            seconds=seconds,
            samples=samples,
            batch_size=batch_size,
            data=data,
            weights=weights,
            seed=seed,
            device=device,
            testbed=testbed,
            quick=quick,
            resume=resume,
        ),
        report=report,
        as_json=as_json,
    )
