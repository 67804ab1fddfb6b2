"""Batch adaptation: what survives with it that does not without, and what it costs in time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.bench.kept import newest
from benchmarks.bench.rows import Row
from benchmarks.published.comparison import Figure, line, missing, said
from benchmarks.published.figures import ADAPTATION, BATCHES, MODELS, SERVER_BATCHES, SERVER_BATCHES_SOURCE

WANTED = MODELS
"""Networks that are run; published are alexnet, and that vgg11 always ran out of memory."""
FIGURE = Figure(
    "batches",
    "Batch adaptation",
    "memory",
    "hapi bench memory " + " ".join(f"--model {model}" for model in WANTED),
    "Theirs: alexnet on two GPUs of 15 GB, requests of 1000 samples, more and more at once. Ours: one request for all "
    "samples, whole backbone, under a limit of an idle server, the weights and a little room, on a CPU.",
)


def compare(rows: Sequence[Row]) -> list[Row]:
    """Rows on time, on how much more fits, and on what died; per network that has `ours`."""
    both = [run for run in ADAPTATION if run.fixed_seconds and run.adapted_seconds]
    speed = fmean((run.fixed_seconds or 0.0) / (run.adapted_seconds or 1.0) for run in both)
    most = max(run.samples_at_once for run in ADAPTATION if run.adapted_seconds)
    most_fixed = max(run.samples_at_once for run in ADAPTATION if run.fixed_seconds)
    found = []
    rows = newest(rows, "model")
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        ours = next((row for row in mine if row.system == "ours" and row.get("survived") == "yes"), None)
        if ours is None:
            continue
        best = _best_fixed(mine)
        if best is not None:
            ratio = ours.get("images_per_s") / best.get("images_per_s")
            found.append(
                line(
                    FIGURE,
                    model,
                    "rate, of the fastest fixed batch that survives",
                    speed,
                    ratio,
                    published_text=f"{speed:.3f}x (alexnet, 1000 to 6000 samples)",
                    ours_text=f"{ratio:.3f}x ({best.system})",
                    says=said(ratio / speed, "as fast beside a fixed batch"),
                    source=BATCHES,
                )
            )
        if (spread := _spread(mine)) is not None:
            found.append(spread)
        held = max((_samples_at_once(row) for row in mine if _survived_fixed(row)), default=0)
        at_once = ours.samples or 0
        times = f"{at_once / held:.2g} times what the largest fixed batch holds" if held else "no fixed batch survived"
        found.append(
            line(
                FIGURE,
                model,
                "samples at once, with adaptation over without",
                most / most_fixed,
                at_once / held if held else None,
                published_text=f"{most} over {most_fixed} ({most / most_fixed:.2g}x)",
                ours_text=f"{at_once} over {held or 'none'}",
                says=times,
                source=BATCHES,
            )
        )
        whole = next((row for row in mine if row.system == "whole"), None)
        if whole is not None:
            died = whole.get("survived") != "yes"
            found.append(
                line(
                    FIGURE,
                    model,
                    "all requested samples as one batch",
                    None,
                    None,
                    published_text="out of memory from 7000 samples; vgg11 always",
                    ours_text=str(whole.get("survived")) if died else "survived",
                    says="only adaptation survives, in both" if died else "there was room for all of it here",
                    source=BATCHES,
                )
            )
    measured = {row.model for row in found}
    if found:
        found += [
            missing(FIGURE, model, f"{most} over {most_fixed} (alexnet)", f"hapi bench memory --model {model}")
            for model in WANTED
            if model not in measured
        ]
    return found


def _spread(rows: Sequence[Row]) -> Row | None:
    """How much the server's batch matters at all: the slowest fixed batch over the fastest, of those that survive."""
    alive = [row for row in rows if row.system.startswith("fixed-") and _survived_fixed(row)]
    rates = sorted((float(row.get("images_per_s")), _samples_at_once(row)) for row in alive if row.get("images_per_s"))
    if len(rates) < 2:
        return None
    seconds = [seconds for _, seconds in SERVER_BATCHES]
    theirs, ours = max(seconds) / min(seconds), rates[-1][0] / rates[0][0]
    sizes = sorted(size for _, size in rates)
    return line(
        FIGURE,
        rows[0].model,
        "slowest over fastest server batch",
        theirs,
        ours,
        published_text=f"{theirs:.2f}x ({SERVER_BATCHES[0][0]} to {SERVER_BATCHES[-1][0]}, vgg19)",
        ours_text=f"{ours:.2f}x ({sizes[0]} to {sizes[-1]}, the fastest {rates[-1][1]})",
        says=said(ours / theirs, "as much between batches"),
        source=SERVER_BATCHES_SOURCE,
    )


def _best_fixed(rows: Sequence[Row]) -> Row | None:
    alive = [row for row in rows if _survived_fixed(row) and row.get("images_per_s")]
    return max(alive, key=lambda row: float(row.get("images_per_s")), default=None)


def _survived_fixed(row: Row) -> bool:
    return (row.system == "whole" or row.system.startswith("fixed-")) and row.get("survived") == "yes"


def _samples_at_once(row: Row) -> int:
    return int(row.samples or 0) if row.system == "whole" else int(row.system.removeprefix("fixed-"))
