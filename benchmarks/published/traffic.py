"""Bytes per iteration: exactly, from shapes and stored sizes, for the cut that moves least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks.baselines.published import freeze_cut
from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.kept import newest
from benchmarks.bench.rows import Row
from benchmarks.published.comparison import Figure, line, missing, said
from benchmarks.published.figures import TRAFFIC, TRAFFIC_BATCH, Traffic
from hapi.plan import INPUT, CutCost, Link, Profile
from hapi.units import format_bytes

if TYPE_CHECKING:
    from hapi.model import Graph

FIGURE = Figure(
    "bytes",
    "Bytes per iteration",
    "e2e",
    "hapi bench e2e",
    "Ours are computed, not measured: the cut is the planner's where nothing but the link costs time, features are "
    "float32 without compression, and the stored bytes are the photographs' mean size times the batch. Theirs are "
    "logged; their pictures are ImageNet's (136 kB on average).",
)


def compare(graphs: Iterable[Graph], stored_bytes: float) -> list[Row]:
    """A row per published run of each network (one at the usual batch where there is none)."""
    found = []
    for graph in graphs:
        runs = [run for run in TRAFFIC if run.model == graph.name] or [Traffic(graph.name, TRAFFIC_BATCH, 0, 0, "")]
        found += [_line(graph, stored_bytes, run) for run in runs]
    return found


def measured(rows: Sequence[Row]) -> list[Row]:
    """What training runs of one epoch really received, per batch as published: at the highest rho that was run.

    Of more epochs nothing is told: the later ones receive nothing, as features are kept.
    """
    found = []
    rows = newest([row for row in rows if row.epochs == 1], "model", "rho")
    for run in TRAFFIC:
        mine = [row for row in rows if row.model == run.model and row.rho and row.bytes and row.samples]
        if not mine:
            if rows:
                command = f"hapi bench e2e --model torchvision:{run.model} --rho 4 --system plain --system mix"
                found.append(missing(FIGURE, run.model, _from_to(run.baseline_bytes, run.split_bytes), command))
            continue
        top = max(row.rho or 0.0 for row in mine)
        sizes = {row.system: run.batch * (row.bytes or 0) / (row.samples or 1) for row in mine if row.rho == top}
        if PLAIN in sizes and "mix" in sizes:
            found.append(
                line(
                    FIGURE,
                    run.model,
                    f"batch {run.batch}, measured",
                    run.split_bytes,
                    sizes["mix"],
                    published_text=_from_to(run.baseline_bytes, run.split_bytes),
                    ours_text=f"{_from_to(sizes[PLAIN], sizes['mix'])} (mix at rho {top:.2g})",
                    says=_says(run.split_bytes / sizes["mix"]),
                    source=run.source,
                )
            )
    return found


def least(graph: Graph, stored_bytes: float) -> CutCost:
    """The planner's cut where nothing but the link costs time."""
    from profiler.planner import plan

    cuts = [
        CutCost(cut.name, stored_bytes if cut.name == INPUT else float(cut.bytes_per_sample), 0.0, 0.0)
        for cut in graph.cuts
    ]
    profile = Profile(graph.name, stored_bytes, tuple(cuts), Link(1e9), samples=1000)
    (share,) = plan(profile, "single").cuts
    return profile.cut(share.name)


def _line(graph: Graph, stored_bytes: float, run: Traffic) -> Row:
    cut = least(graph, stored_bytes)
    stored, ours = run.batch * stored_bytes, run.batch * cut.out_bytes
    frozen = freeze_cut(f"torchvision:{run.model}")
    at_freeze = run.batch * graph.cut(frozen).bytes_per_sample
    theirs = run.split_bytes or None
    return line(
        FIGURE,
        run.model,
        f"batch {run.batch}",
        theirs,
        ours,
        published_text=_from_to(run.baseline_bytes, run.split_bytes) if theirs else "not logged",
        ours_text=f"{_from_to(stored, ours)} at {cut.name}",
        says=_says(theirs / ours) if theirs else f"{stored / ours:.3g} times less than is stored",
        stored_bytes=stored,
        ours_bytes=ours,
        published_baseline_bytes=run.baseline_bytes,
        published_split_bytes=run.split_bytes,
        freeze_cut=frozen,
        freeze_bytes=at_freeze,
        batch=run.batch,
        source=run.source,
    )


def _from_to(stored: float, moved: float) -> str:
    return f"{format_bytes(stored)} to {format_bytes(moved)}"


def _says(less: float) -> str:
    return said(less, "less moved") if less >= 1 / 1.05 else f"ours {1 / less:.2g} times more moved"
