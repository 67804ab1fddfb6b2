"""`hapi bench faults`: what happens to a training whose server, link, store, objects or neighbour fail."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options

FaultOption = Annotated[
    list[str] | None, typer.Option("--fault", help="Only faults with these words in their name; may be repeated.")
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("faults")(faults)


def faults(
    fault: FaultOption = None,
    system: options.Systems = None,
    model: Annotated[
        str, typer.Option(help="torchvision:NAME, hf:PATH or package.module:factory.")
    ] = "torchvision:mobilenet_v2",
    weights: options.Weights = "none",
    bandwidth: Annotated[str, typer.Option(help="Of the link, as in 200mbit.")] = "200mbit",
    pushdown: Annotated[str, typer.Option(help="Of ours: auto, a policy, or the name of a cut.")] = "auto",
    epochs: options.Epochs = 2,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 16,
    data: options.DataOption = None,
    seed: options.Seed = 0,
    testbed: options.TestbedKind = "auto",
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Disturb trainings in their middle: the server killed (and back, or not), the link choked, the store stopped,
    objects lost or damaged, another tenant killed.

    `mix` is ours; `plain` is PyTorch's DataLoader with boto3, where the fault concerns it. `seconds` are those of all
    epochs, `lost` what they are more than undisturbed. `survived`: trained to the end (a dash where it must not). A row
    fails, and the command ends with 1, where ours breaks its promise: the same losses as undisturbed, however long it
    takes; only the bad samples left out; and where nothing can be done, an error that names the cause, in time.
    """
    from benchmarks.faults.experiment import Settings, run

    run(
        Settings(
            model=model,
            weights=weights,
            faults=tuple(fault or ()),
            systems=tuple(system or ()),
            bandwidth=bandwidth,
            pushdown=pushdown,
            epochs=epochs,
            samples=samples,
            batch_size=batch_size,
            data=data,
            seed=seed,
            testbed=testbed,
            quick=quick,
        ),
        report=report,
        as_json=as_json,
    )
