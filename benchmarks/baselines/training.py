"""What every baseline does with its features: a linear head, trained by the rules of `hapi train` (see HeadTrainer).

They are written out again here, without HAPI, so that all must give the same losses:

- Of n samples, round(n * val_split) are held out: the first of randperm(n) from a generator with the seed. Both parts
  are sorted.
- Training reads its part with shuffle=True and a generator with the seed, validation in order, both in batches of
  `batch_size`, the last short one included.
- The head is nn.Linear(features, classes) right after torch.manual_seed(seed).
- SGD(lr=0.01, momentum=0.9) or Adam(lr=0.001), mean cross-entropy, one step per batch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hapi.allocator import keep_freed_memory
from hapi.errors import HapiError

Batches = Iterable[tuple[Tensor, Tensor]]
"""(features, labels) of one pass."""


@dataclass(frozen=True)
class Task:
    """What a baseline is asked to do."""

    data: str
    model: str
    weights: str = "DEFAULT"
    epochs: int = 5
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float = 0.0
    val_split: float = 0.2
    seed: int = 0
    num_workers: int | None = None
    device: str = "cpu"
    channels_last: bool = False

    @property
    def where(self) -> torch.device:
        """The device of backbone and head."""
        return torch.device(self.device)

    @property
    def workers(self) -> int:
        """Of a DataLoader: as many processes as processors that this one may use, at most 8, unless it is said."""
        return min(8, usable_processors()) if self.num_workers is None else self.num_workers

    def parts(self, samples: int) -> tuple[list[int], list[int]]:
        """(what is trained on, what is held out), by number, sorted."""
        held_out = round(samples * self.val_split)
        shuffled = torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return sorted(shuffled[held_out:]), sorted(shuffled[:held_out])

    def loading(self) -> dict[str, Any]:
        """The arguments that every DataLoader of this task has."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.where.type == "cuda",
        }

    def order(self) -> torch.Generator:
        """Of the training part; one for all epochs."""
        return torch.Generator().manual_seed(self.seed)


class Numbers(Dataset[int]):
    """The numbers below `count` as a dataset: what a DataLoader makes of them is its order."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Starting:
    """A DataLoader's `worker_init_fn` that tells how long the first epoch only started its processes.

    `opened` is done in each worker first: what it needs before it can read.
    """

    def __init__(self, opened: Callable[[], object] | None = None) -> None:
        self._opened = opened
        self._ready = multiprocessing.Value("d", 0.0)
        self._begun = 0.0

    def begins(self) -> None:
        """The first epoch does, now."""
        self._begun = time.time()

    def __call__(self, worker: int) -> None:
        if self._opened is not None:
            self._opened()
        with self._ready.get_lock():
            self._ready.value = self._ready.value or time.time()

    @property
    def seconds(self) -> float:
        """Until the first worker could read; 0 without workers."""
        return max(0.0, self._ready.value - self._begun) if self._ready.value else 0.0


def next_order(samples: int, generator: torch.Generator) -> Tensor:
    """The order in which a DataLoader with shuffle=True and this generator reads next."""
    return torch.tensor(list(DataLoader(Numbers(samples), batch_size=None, shuffle=True, generator=generator)))


def temporary_folder(owner: object, name: str) -> Path:
    """A new folder that goes away with its owner."""
    folder = tempfile.mkdtemp(prefix=f"{name}-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class Source(Protocol):
    """A system: where the features of a task come from."""

    classes: Sequence[str]
    train_samples: int
    val_samples: int

    @property
    def starting_seconds(self) -> float:
        """Of the first epoch: those in which processes were only being started. They are start-up, as for all."""
        ...

    def training(self, epoch: int) -> Batches:
        """The training part, in the order of that epoch."""
        ...

    def validation(self) -> Batches:
        """What is held out, in order."""
        ...

    def received(self) -> tuple[int, int]:
        """(bytes, requests) so far, of what was read from a bucket."""
        ...


def fit(system: str, task: Task, open_source: Callable[[Task], Source]) -> dict[str, Any]:
    """Trains a linear head; the document of `hapi train --json`, as far as it applies."""
    started = time.perf_counter()
    source = open_source(task)
    head: nn.Linear | None = None
    losses, accuracies, epoch_seconds = [], [], []
    for epoch in range(task.epochs):
        begun = time.perf_counter()
        total, seen = 0.0, 0
        for features, labels in source.training(epoch):
            if head is None:
                torch.manual_seed(task.seed)
                head = nn.Linear(features.shape[1], len(source.classes)).to(task.where)
                steps = make_optimizer(head, task)
            steps.zero_grad()
            loss = nn.functional.cross_entropy(head(features), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        if seen != source.train_samples:
            raise RuntimeError(f"{system}: {seen} samples came in epoch {epoch}, {source.train_samples} were due.")
        losses.append(total / seen)
        epoch_seconds.append(time.perf_counter() - begun - (0.0 if epoch else source.starting_seconds))
        if source.val_samples and head is not None:
            with torch.no_grad():
                right = sum(int((head(features).argmax(1) == labels).sum()) for features, labels in source.validation())
            accuracies.append(right / source.val_samples)
    received, requests = source.received()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "system": system,
        "model": task.model,
        "samples": source.train_samples + source.val_samples,
        "train_samples": source.train_samples,
        "val_samples": source.val_samples,
        "epochs": task.epochs,
        "seconds": time.perf_counter() - started,
        "epoch_seconds": epoch_seconds,
        "losses": losses,
        "final_loss": losses[-1],
        "accuracies": accuracies,
        "accuracy": accuracies[-1] if accuracies else None,
        "bytes_received": received,
        "requests": requests,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "classes": list(source.classes),
        "workers": task.workers,
        "threads": torch.get_num_threads(),
    }


def make_optimizer(head: nn.Module, task: Task) -> torch.optim.Optimizer:
    """`sgd` or `adam`, with the learning rates of `hapi train`."""
    if task.optimizer == "adam":
        return torch.optim.Adam(head.parameters(), lr=task.lr or 0.001, weight_decay=task.weight_decay)
    return torch.optim.SGD(head.parameters(), lr=task.lr or 0.01, momentum=0.9, weight_decay=task.weight_decay)


def usable_processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    system: str,
    open_source: Callable[..., Source],
    arguments: Sequence[str] | None = None,
    *,
    add: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """The program of a system: prints one JSON document on standard output.

    Freed memory is kept, as by `hapi train`: equal care for both. `add` gives the parser options of the system's own,
    which `open_source` is then called with, by name.
    """
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=f"Transfer learning with {system}, for comparison.")
    parser.add_argument("--data", required=True, help="a folder per class: a path, file:// or s3:// address")
    parser.add_argument("--model", required=True, help="torchvision:NAME or hf:PATH_OR_NAME")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT, none, or a safetensors file")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--lr", type=float, help="default 0.01 for sgd, 0.001 for adam")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--val-split", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, help="worker processes; default one per processor, at most 8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--channels-last", action="store_true", help="the layout that many CPU kernels prefer")
    shared = {action.dest for action in parser._actions}
    if add is not None:
        add(parser)
    given = vars(parser.parse_args(arguments))
    task = Task(**{name: value for name, value in given.items() if name in shared})
    own = {name: value for name, value in given.items() if name not in shared}
    try:
        document = fit(system, task, lambda task: open_source(task, **own))
    except HapiError as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(document))
