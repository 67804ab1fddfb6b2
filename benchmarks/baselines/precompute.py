"""What a careful PyTorch user does by hand: compute all features once, save them, train on them.

The backbone runs once over every photograph, read as by plain (boto3 under DataLoader workers), in the order of the
listing; the features go to a safetensors file, and every epoch, the first one too, trains on what that file holds, in
plain's order. The pass over the photographs counts as part of the first epoch.

Run it: python -m benchmarks.baselines.precompute --data photos/ --model torchvision:mobilenet_v2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.baselines.networks import Extractor, Features, load_network
from benchmarks.baselines.objects import open_dataset
from benchmarks.baselines.plain import starting
from benchmarks.baselines.training import Batches, Task, next_order, run, temporary_folder

SYSTEM = "precompute"


class PrecomputeSource:
    """The features of a map-style dataset, from a file that the first epoch writes."""

    def __init__(self, task: Task) -> None:
        backbone, transform = load_network(task.model, task.weights)
        dataset = open_dataset(task.data, transform)
        self.classes: Sequence[str] = dataset.classes
        self._part, self._held = task.parts(len(dataset))
        self.train_samples, self.val_samples = len(self._part), len(self._held)
        extract = Extractor(backbone, task.where, channels_last=task.channels_last)
        self._starting = starting(dataset)
        self._all = Features(extract, DataLoader(dataset, worker_init_fn=self._starting, **task.loading()))
        self._order = task.order()
        self._task = task
        self._file = temporary_folder(self, "features") / "features.safetensors"
        self._kept: dict[str, Tensor] = {}

    @property
    def starting_seconds(self) -> float:
        return self._starting.seconds

    def training(self, epoch: int) -> Batches:
        if not epoch:
            self._starting.begins()
        return self._batches(torch.tensor(self._part)[next_order(self.train_samples, self._order)])

    def validation(self) -> Batches:
        return self._batches(torch.tensor(self._held))

    def received(self) -> tuple[int, int]:
        return self._all.bytes_received, self._all.requests

    def _batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        kept, where, size = self._features(), self._task.where, self._task.batch_size
        for places in (order[start : start + size] for start in range(0, len(order), size)):
            yield kept["features"][places].to(where), kept["labels"][places].to(where)

    def _features(self) -> dict[str, Tensor]:
        """All features and labels, computed and saved when they are first asked for."""
        if not self._kept:
            from safetensors.torch import load_file, save_file

            features, labels = zip(*((computed.cpu(), known.cpu()) for computed, known in self._all), strict=True)
            save_file({"features": torch.cat(features), "labels": torch.cat(labels)}, self._file)
            self._kept = load_file(self._file)
        return self._kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON document on standard output."""
    run(SYSTEM, PrecomputeSource, arguments)


if __name__ == "__main__":
    main()
