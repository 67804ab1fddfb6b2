"""`hapi bench cache`: what epochs after the first cost, beside training the head on features that lie in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.bars import bars
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, share, times

if TYPE_CHECKING:
    import torch

    from compute_client import DataLoader

COLUMNS = (
    MODEL,
    SYSTEM,
    SAMPLES,
    Column("batch", "batch"),
    SECONDS,
    BYTES,
    Column("requests", "requests"),
    Column("hit_share", "from cache", share),
    Column("cost_over_in_memory", "of in memory", times),
)
PLOTS = (
    Plot(
        "cost",
        "An epoch of kept features, in epochs over features in memory",
        bars("cost_over_in_memory", "times of in memory", times, line=1.0),
        "The line is training the head on one tensor of features, measured in turn with each.",
    ),
)
QUICK_SAMPLES, SAMPLES_USED = 200, 1000
SETTLED = 2
"""Later epochs that are not counted: the processor's caches and torch's allocator come to rest."""
DISK_BYTES = 4 * 2**30


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("cache")(cache)


def cache(
    model: options.Models = None,
    weights: options.Weights = "none",
    data: options.DataOption = None,
    samples: options.Samples = None,
    copies: Annotated[int, typer.Option(min=1, help="Times that each photograph is in the dataset.")] = 10,
    epochs: options.Epochs = 9,
    batch_size: options.BatchSize = 256,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """A linear head is trained by the same loop on the features of a loader, over a storage server of this machine.

    `seconds` is of one epoch: `first` with an empty cache, and the median of later ones (the first two of them left
    out) otherwise. `in memory` trains on one tensor of features, indexed per batch by a random permutation: the least
    that an epoch can cost. `memory` finds every feature in memory, `half` has memory for half of them and the rest on
    disk, `disk` all on disk; `restart` is the first epoch of a new loader over that folder, with its server gone.
    `bytes` and `requests` are of that epoch. In-memory epochs are measured in turn with those that they are compared
    with.
    """
    with Bench(
        "cache",
        as_json=as_json,
        report=report,
        columns=COLUMNS,
        same=("model", "samples"),
        title="Epochs after the first",
        plots=PLOTS,
        finish=_costs,
    ) as bench:
        import torch

        from benchmarks.bench.photographs import photographs
        from benchmarks.localserver import local_server
        from hapi.model import capture
        from hapi.model.zoo import load_model

        torch.set_num_threads(1)
        count = samples or (QUICK_SAMPLES if quick else SAMPLES_USED)
        with photographs(data, count, seed=seed) as folder, tempfile.TemporaryDirectory() as kept:
            listing = repeated(folder, copies)
            for spec in model or ["torchvision:mobilenet_v2"]:
                name = spec.removeprefix("torchvision:")
                with bench.step(system="first", model=name):
                    found = load_model(spec, weights)
                    graph = capture(found.backbone, found.example, name=name)
                    common = {"backbone": graph, "transform": found.transform, "batch_size": batch_size, "seed": seed}
                    with local_server(folder) as server:
                        opened = open_loader(listing, server.url, cache_dir=Path(kept) / name, **common)
                        with bench.trial(system="first", model=name) as trial:
                            trial.measured(batch=batch_size, **epoch_of(opened))
                        row_bytes = 4 * opened.feature_shape[0]
                        features, labels = everything(opened)
                        plain = in_memory(features, labels, batch_size, seed)
                        half = len(labels) * (8 + row_bytes // 2)
                        systems: dict[str, Any] = {"memory": None, "half": half, "disk": 0}
                        loaders = {
                            system: open_loader(
                                listing, server.url, cache_dir=Path(kept) / name, cache_bytes=room, **common
                            )
                            for system, room in systems.items()
                        }
                    with bench.trial(system="restart", model=name) as trial:  # the server is gone from here on
                        trial.measured(batch=batch_size, **epoch_of(loaders["memory"]))
                    for system, loader in loaders.items():
                        with bench.trial(system=system, model=name) as trial:
                            ours, theirs = in_turn(partial(epoch_of, loader), plain, epochs)
                            trial.measured(batch=batch_size, in_memory_seconds=theirs, **ours)


def _costs(rows: list[Any]) -> list[Any]:
    return [
        row.filled(cost_over_in_memory=row.seconds / theirs) if (theirs := row.get("in_memory_seconds")) else row
        for row in rows
    ]


def repeated(folder: Path, copies: int) -> Path:
    """A list that names each photograph several times, as ranges of samples would: many features at little cost."""
    lines = ["path,label"]
    for number in range(copies):
        target = folder / f"copy{number}"
        for path in sorted(folder.glob("*/*.*")) if not number else sorted((folder / "copy0").glob("*/*.*")):
            place = target / path.parent.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if number:
                place.hardlink_to(path)
            else:
                path.rename(place)
            lines.append(f"{place.relative_to(folder)},{path.parent.name}")
    listing = folder / "list.csv"
    listing.write_text("\n".join(lines) + "\n", "utf-8")
    return listing


def open_loader(listing: Path, server: str, **arguments: Any) -> DataLoader:
    from compute_client import DataLoader

    return DataLoader(
        str(listing), server=server, pushdown="all", shuffle=True, disk_cache_bytes=DISK_BYTES, **arguments
    )


def train(batches: Iterable[tuple[torch.Tensor, torch.Tensor]], features: int, classes: int) -> float:
    """Seconds of one epoch of a linear head, from the beginning."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    head = nn.Linear(features, classes)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    begun = time.perf_counter()
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - begun


def epoch_of(loader: DataLoader) -> dict[str, Any]:
    """One epoch: seconds, samples, and what was asked of the server."""
    before = loader.stats.to_json()
    seconds = train(loader, loader.feature_shape[0], len(loader.classes))
    after = loader.stats.to_json()
    done = {key: after[key] - before[key] for key in ("samples", "bytes_received", "requests", "cached_samples")}
    return {
        "samples": done["samples"],
        "seconds": seconds,
        "bytes": done["bytes_received"],
        "requests": done["requests"],
        "hit_share": done["cached_samples"] / done["samples"],
    }


def everything(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """All features and labels, as one tensor each."""
    import torch

    batches = list(loader)
    return torch.cat([features for features, _ in batches]), torch.cat([labels for _, labels in batches])


def in_memory(features: torch.Tensor, labels: torch.Tensor, batch_size: int, seed: int) -> Callable[[], float]:
    """An epoch over a tensor of features, in a new order each time; its seconds."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):  # type: ignore[no-untyped-call]
            yield features[rows], labels[rows]

    return lambda: train(batches(), features.shape[1], classes)


def in_turn(
    ours: Callable[[], dict[str, Any]], theirs: Callable[[], float], epochs: int
) -> tuple[dict[str, Any], float]:
    """Both in turn, so that what the machine does besides meets both; medians of seconds, the rest of the last."""
    found = [(ours(), theirs()) for _ in range(SETTLED + epochs)][SETTLED:]
    seconds = statistics.median(epoch["seconds"] for epoch, _ in found)
    return {**found[-1][0], "seconds": seconds}, statistics.median(plain for _, plain in found)
