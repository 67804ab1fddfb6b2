"""The options that scenarios have in common, for their signatures: `quick: options.Quick = False`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from hapi.errors import InputError

AsJson = Annotated[
    bool,
    typer.Option("--json", help="One JSON document (machine, rows) on standard output."),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", help="Write a web page with plots into this folder."),
]
Quick = Annotated[bool, typer.Option("--quick", help="A meaningful answer in under two minutes on two cores.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="torchvision:NAME, hf:PATH or package.module:factory; may be repeated."),
]
Weights = Annotated[str, typer.Option(help="DEFAULT (downloaded), none (random, seed 0), or a safetensors file.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Folder per class of photographs. (default: synthetic, about 100 kB)"),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Most photographs to use.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the photographs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per training batch.")]
Seed = Annotated[int, typer.Option(min=0, help="Of pictures, order and head.")]
Repeats = Annotated[int, typer.Option(min=1, help="Times that each is measured.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of one network operation.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
TestbedKind = Annotated[
    str, typer.Option("--testbed", help="namespaces (two hosts, shaped), relay (no privileges needed), or auto.")
]
Bandwidths = Annotated[
    list[str] | None, typer.Option("--bandwidth", help="Of the link, as in 100mbit or 1Gbit; may be repeated.")
]
Systems = Annotated[list[str] | None, typer.Option("--system", help="Only this system; may be repeated.")]


def check_known(what: str, given: Iterable[str] | None, known: Iterable[str]) -> None:
    """InputError for a name that there is not: it would be left out, and nothing would say so."""
    names = list(known)
    for name in given or ():
        if name not in names:
            raise InputError(f"{what} {name!r}: there are {', '.join(names)}.")
