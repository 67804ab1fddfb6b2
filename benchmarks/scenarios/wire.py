"""`hapi bench wire`: how full features keep a link, and what they cost either host's processors."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options

Cut = Annotated[str, typer.Option(help="Whose features are sent; `input` sends the stored photographs.")]
Ways = Annotated[
    list[str] | None,
    typer.Option("--way", help="A codec and a compression, as in int8+zstd; or `objects`. May be repeated."),
]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="How long each way is measured. (default: 5)")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("wire")(wire)


def wire(
    model: Annotated[str, typer.Option(help="torchvision:NAME, hf:PATH or package.module:factory.")] = (
        "torchvision:squeezenet1_1"
    ),
    cut: Cut = "features.6",
    way: Ways = None,
    bandwidth: Annotated[str, typer.Option(help="Of the link, as in 1Gbit.")] = "1Gbit",
    seconds: Seconds = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    samples: options.Samples = None,
    data: options.DataOption = None,
    weights: options.Weights = "none",
    seed: options.Seed = 0,
    testbed: options.TestbedKind = "auto",
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Receive the same features again and again over a link, in every way in which they can travel.

    The server has the features in its cache, so that only the wire is measured: reading the cache, encoding, sending,
    receiving, decoding, and putting rows together. `seconds` are those of receiving, after a first pass over all
    samples, `limit` what the bytes alone take at the link's rate; `link filled` is the one over the other (TCP/IP and
    Ethernet take about 4 % of a link).
    Processor seconds are per GB of features (as float32, 10^9 bytes; of `objects` per GB of photographs).
    """
    from benchmarks.wire.experiment import Settings, run

    run(
        Settings(
            model=model,
            cut=cut,
            ways=tuple(way or ()),
            bandwidth=bandwidth,
            seconds=seconds or (1.5 if quick else 5.0),
            in_flight=in_flight,
            samples=samples or (64 if quick else 128),
            data=data,
            weights=weights,
            seed=seed,
            testbed=testbed,
        ),
        report=report,
        as_json=as_json,
    )
