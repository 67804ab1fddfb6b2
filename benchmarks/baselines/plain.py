"""The plain PyTorch script that HAPI is compared with: no HAPI in it, and what PyTorch's and AWS's pages recommend.

A DataLoader with worker processes over an ImageFolder, or over a Dataset that reads objects of a bucket with boto3 (one
client per worker, made on first use); the backbone runs eagerly, in eval mode, under inference_mode; a linear head
trains on its features, by the rules of benchmarks/baselines/training.py.

Run it: python -m benchmarks.baselines.plain --data photos/ --model torchvision:mobilenet_v2 --weights w.safetensors
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks.baselines.networks import Extractor, Features, load_network
from benchmarks.baselines.objects import S3ImageFolder, open_dataset
from benchmarks.baselines.training import Batches, Starting, Task, fit, run

OpenDataset = Callable[[str, Callable[[Any], Tensor]], Any]
"""Of (address, transform): a map-style dataset with `classes`, of (image, class) or (image, class, bytes read)."""


class PlainSource:
    """The features of a map-style dataset, read by DataLoader workers while the backbone computes."""

    def __init__(self, task: Task, open_dataset: OpenDataset = open_dataset) -> None:
        backbone, transform = load_network(task.model, task.weights)
        self.dataset = open_dataset(task.data, transform)
        self.classes: Sequence[str] = self.dataset.classes
        part, held = task.parts(len(self.dataset))
        self.train_samples, self.val_samples = len(part), len(held)
        self.extract = Extractor(backbone, task.where, channels_last=task.channels_last)
        self._workers, self._order = task.workers, task.order()
        self._starting = starting(self.dataset)
        shuffled = {"shuffle": True, "generator": self._order, "worker_init_fn": self._starting, **task.loading()}
        self._train = Features(self.extract, DataLoader(Subset(self.dataset, part), **shuffled))
        self._val = Features(self.extract, DataLoader(Subset(self.dataset, held), **task.loading()))

    @property
    def starting_seconds(self) -> float:
        return self._starting.seconds

    def training(self, epoch: int) -> Batches:
        if not epoch:
            self._starting.begins()
        elif self._workers:  # persistent workers keep the seed that a new pass would have drawn before its order
            torch.empty((), dtype=torch.int64).random_(generator=self._order)
        return self._train

    def validation(self) -> Batches:
        return self._val

    def received(self) -> tuple[int, int]:
        return (
            self._train.bytes_received + self._val.bytes_received,
            self._train.requests + self._val.requests,
        )


def starting(dataset: Any) -> Starting:
    """Of a dataset's workers, which make their clients first; the connector's are made by its own code."""
    return Starting(dataset.open if isinstance(dataset, S3ImageFolder) else None)


def train_plain(data: str, model: str, **options: Any) -> dict[str, Any]:
    """Trains a linear head; `options` are those of Task."""
    return fit("plain", Task(data, model, **options), PlainSource)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON document on standard output."""
    run("plain", PlainSource, arguments)


if __name__ == "__main__":
    main()
