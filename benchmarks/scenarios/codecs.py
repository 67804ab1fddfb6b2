"""`hapi bench codecs`: what codecs that change features do to a head trained on them."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.bench import options

Cuts = Annotated[
    list[str] | None, typer.Option("--cut", help="Where features travel; may be repeated. (default: a few, evenly)")
]
Codecs = Annotated[list[str] | None, typer.Option("--codec", help="Only this codec; may be repeated.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("codecs")(codecs)


def codecs(
    model: options.Models = None,
    cut: Cuts = None,
    codec: Codecs = None,
    samples: options.Samples = None,
    data: options.DataOption = None,
    weights: Annotated[
        str, typer.Option(help="DEFAULT, none (random), a safetensors file, or a folder with NAME.safetensors.")
    ] = "none",
    seeds: Annotated[int, typer.Option(min=2, help="Divisions of the photographs and heads that are trained.")] = 10,
    epochs: options.Epochs = 60,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a linear head on features that travelled in each codec, at several cuts; compare it with the exact one.

    Photographs are divided into a part to train on (80 %) and one to judge by, several times; each time a head is
    trained on exact features and one on each codec's, from the same start. `accuracy` is the mean on the part to judge
    by, `change` the mean difference to the exact head of the same division, `+-` its standard error: a change within
    two of them is noise. `seconds` are those to encode and to decode all samples on one thread, `bytes` what they take.
    """
    from benchmarks.wire.accuracy import Settings, run

    run(
        Settings(
            models=tuple(model or ("torchvision:mobilenet_v2", "torchvision:squeezenet1_1")),
            cuts=tuple(cut or ()),
            codecs=tuple(codec or ("float16", "bfloat16", "int8")),
            samples=samples or (100 if quick else 500),
            data=data,
            weights=weights,
            seeds=seeds,
            epochs=epochs,
            most_cuts=2 if quick else 4,
        ),
        report=report,
        as_json=as_json,
    )
