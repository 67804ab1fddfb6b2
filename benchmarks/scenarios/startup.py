"""`hapi bench startup`: how long a job takes until its first batch, the first time and when it comes again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from benchmarks.bench import options
from benchmarks.bench.bars import stacked
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import MODEL, SECONDS, SYSTEM, Column, number
from hapi.units import format_seconds

PHASES = ("import", "load", "capture", "connect", "upload", "plan", "first_batch")
COLUMNS = (MODEL, SYSTEM, SECONDS, *(Column(f"{phase}_seconds", phase.replace("_", " "), number) for phase in PHASES))
CAPTION = (
    "From the start of the process to its first batch of 32. `load` makes the network and divides it, `plan` measures "
    "both tiers and the link, as far as that is not remembered."
)
DEFAULT_MODELS = ["resnet50", "densenet121", "vit_b_16", "mobilenet_v3_small", "swin_t", "convnext_tiny"]
QUICK_MODELS = ["resnet50", "mobilenet_v3_small"]
PHOTOGRAPHS = 128


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("startup")(startup)


def startup(
    model: options.Models = None,
    data: options.DataOption = None,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Seconds from the start of a process to its first batch, in parts.

    `cold`: nothing of the model is known to either side. `warm`: the same job again, in a new process: the server holds
    the model, and both remember what they measured. Weights are random, so that nothing is downloaded.
    """
    with Bench(
        "startup",
        as_json=as_json,
        report=report,
        columns=COLUMNS,
        compare_with=["cold"],
        title="From the start to the first batch",
        plots=plots(),
    ) as bench:
        from benchmarks.bench.photographs import photographs
        from benchmarks.localserver import local_server

        with (
            photographs(data, PHOTOGRAPHS, seed=seed) as folder,
            tempfile.TemporaryDirectory() as cache,
            local_server(folder) as server,
        ):
            for spec in model or (QUICK_MODELS if quick else DEFAULT_MODELS):
                for system in ("cold", "warm"):
                    with bench.trial(system=system, model=spec.removeprefix("torchvision:")) as trial:
                        trial.measured(samples=PHOTOGRAPHS, **_start(server.url, folder, spec, cache))


def plots() -> list[Plot]:
    """One: what the time is made of."""
    parts = {f"{phase}_seconds": phase.replace("_", " ") for phase in PHASES}
    return [Plot("phases", "Where the time goes", stacked(parts, "time", format_seconds), CAPTION)]


def _start(url: str, folder: Path, model: str, cache: str) -> dict[str, Any]:
    """One start, in a process of its own."""
    name = model if ":" in model else f"torchvision:{model}"
    command = [sys.executable, "-m", "benchmarks.starting", url, str(folder), name]
    done = subprocess.run(
        command, env={**os.environ, "XDG_CACHE_HOME": cache}, check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"note": answer.pop("plan"), **answer}
