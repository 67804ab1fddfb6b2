"""`hapi bench published`: the published figures, each beside ours, with what must be known to compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench
from benchmarks.bench.table import Column

if TYPE_CHECKING:
    from benchmarks.bench.kept import Kept
    from benchmarks.bench.rows import Row
    from hapi.model import Graph

PHOTOGRAPHS = 32
COLUMNS = (
    Column("model", "model", is_text=True),
    Column("situation", "situation", is_text=True),
    Column("published_text", "published", is_text=True),
    Column("ours_text", "ours", is_text=True),
    Column("says", "says", is_text=True),
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("published")(published)


def published(
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Documents of hapi bench e2e|sweep|memory|tenants --json.")
    ] = Path("benchmarks/results"),
    model: options.Models = None,
    data: options.DataOption = None,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Put the published figures beside ours: time, bytes, batch adaptation, tenants, split quality.

    Theirs are in benchmarks/published/figures.py with their sources. Ours come from results that were kept; a
    figure without any is named with the command that makes them. Bytes per iteration are computed here, exactly, from
    the networks' shapes and the mean size of the photographs (--data, or synthetic ones): at the cut that the
    planner takes where nothing but the link costs time.
    """
    from benchmarks.bench.kept import read_folder
    from benchmarks.published import adaptation, quality, tenancy, times, traffic
    from benchmarks.published.plots import plots

    documents = read_folder(results)
    rows = _by_scenario(documents)
    with Bench(
        "published",
        as_json=as_json,
        report=report,
        columns=COLUMNS,
        title="The published figures beside ours",
        plots=plots(rows),
        table_by="figure",
    ) as bench:
        for one in documents:
            bench.remark(_about(one))
        found = [(times.FIGURE, times.compare(rows.get("e2e", ())))]
        found.append((traffic.FIGURE, _traffic(bench, model, data, rows.get("e2e", []))))
        found.append((adaptation.FIGURE, adaptation.compare(rows.get("memory", ()))))
        found.append((tenancy.FIGURE, tenancy.compare(rows.get("tenants", ()))))
        found.append((quality.FIGURE, quality.compare(rows.get("sweep", ()))))
        compared = [figure for figure, lines in found if lines]
        bench.tell(f"{len(compared)} of {len(found)} published figures could be compared with results of ours.")
        for figure, lines in found:
            if absent := [row.model for row in lines if row.get("is_missing")]:
                bench.tell(f"{figure.title}: no result of ours is kept for {', '.join(absent)}.")
        for figure, lines in found:
            for line in lines:
                bench.add(line)
            if lines:
                bench.remark(f"{figure.title}: {figure.regime}")
            else:
                bench.remark(
                    f"{figure.title}: nothing of ours to compare in {results}. "
                    f"Make it with: {figure.command} --json > {results / figure.scenario}.json"
                )


def _by_scenario(documents: list[Kept]) -> dict[str, list[Row]]:
    from benchmarks.bench.kept import rows_of

    # rows of tenants fail where some of them did: which is what is to be compared
    return {one.scenario: rows_of(documents, one.scenario, failed=one.scenario == "tenants") for one in documents}


def _about(kept: Kept) -> str:
    machine = kept.machine
    return (
        f"{kept.path}: {machine.get('cpu')}, {machine.get('cpus_usable')} processors, {machine.get('started')}, "
        f"revision {machine.get('revision')}, {kept.command}"
    )


def _traffic(bench: Bench, models: list[str] | None, data: str | None, e2e: list[Row]) -> list[Row]:
    from benchmarks.bench.photographs import mean_bytes, photographs
    from benchmarks.published import traffic
    from benchmarks.published.figures import MODELS

    with photographs(data, PHOTOGRAPHS) as folder:
        stored = mean_bytes(folder)
    lines = []
    for name in models or MODELS:
        bench.say(f"capturing {name}")
        with bench.step(system="ours", model=name.removeprefix("torchvision:"), figure=traffic.FIGURE.title):
            lines += traffic.compare([captured(name)], stored)
    return [*lines, *traffic.measured(e2e)]


def captured(name: str) -> Graph:
    """A torchvision backbone with random weights."""
    from hapi.model import capture
    from hapi.model.zoo import load_model

    loaded = load_model(name if ":" in name else f"torchvision:{name}", "none")
    return capture(loaded.backbone, loaded.example, name=name.removeprefix("torchvision:"))
