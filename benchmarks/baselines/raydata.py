"""Ray Data with reading, decoding and the backbone placed on the storage host, and only features sent to the trainer.

As its pages show batch inference: files are read and decoded by tasks, the backbone is an actor that keeps its network,
and the driver takes batches with iter_torch_batches. Tasks and actor ask for the resource `storage`, which only the
storage host's node has, half of its logical processor each. A block is as many files as a batch: of its own accord Ray
reads each file of a small set in a task of its own. The files are named in plain's order of the first epoch, and that
order is preserved, so its loss is plain's. Where there are later epochs the features are materialized in Ray's object
store and shuffled locally, as its pages advise: in an order of its own.

Ray starts the actor with the first epoch; until it is ready counts as start-up, as it does for all systems.

Run it on a host that is a node of the cluster: python -m benchmarks.baselines.raydata --cluster HOST:PORT
--node-address ADDRESS --data s3://photos --model torchvision:mobilenet_v2
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines.networks import Extractor, load_network
from benchmarks.baselines.objects import Listing, decoded, make_client, store_settings
from benchmarks.baselines.peers import required
from benchmarks.baselines.training import Batches, Task, next_order, run
from hapi.allocator import keep_freed_memory

SYSTEM = "ray"
RESOURCE = "storage"
"""What the node of the storage host offers, and the tasks ask a little of."""
PLACED: dict[str, Any] = {"resources": {RESOURCE: 0.001}, "num_cpus": 0.5}


class ReadSample:
    """A row of read_binary_files -> its image as an array, its class and its size in bytes."""

    def __init__(self, labels: dict[str, int], transform: Callable[[Any], Tensor]) -> None:
        self.labels, self.transform = labels, transform

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image": decoded(row["bytes"], self.transform).numpy(), "label": self.labels[row["path"]]}


class Backbone:
    """The actor: batches of images -> batches of features."""

    def __init__(self, model: str, weights: str, device: str, channels_last: bool) -> None:
        keep_freed_memory()
        network, _ = load_network(model, weights)
        self.extract = Extractor(network, torch.device(device), channels_last=channels_last)
        self.ready = time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        features = self.extract(torch.from_numpy(np.ascontiguousarray(batch["image"]))).cpu().numpy()
        return {"features": features, "label": batch["label"], "ready": np.full(len(features), self.ready)}


class RaySource:
    """The features that a Ray cluster computes."""

    val_samples = 0
    starting_seconds = 0.0

    def __init__(self, task: Task, *, cluster: str, node_address: str) -> None:
        self._ray = required(SYSTEM)
        import_module("ray.data")
        if task.val_split:
            raise ValueError("ray: its samples come as a stream, of which none is held out: give --val-split 0.")
        self._ray.init(address=cluster, _node_ip_address=node_address, log_to_driver=False, logging_level=logging.ERROR)
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        self._task = task
        self._listing = Listing(task.data, make_client())
        self.classes: Sequence[str] = self._listing.classes
        self.train_samples = len(self._listing.samples)
        self._bytes = self._batches = 0
        self._pipeline = self._features(next_order(self.train_samples, task.order()).tolist())
        self._kept: Any = None

    def training(self, epoch: int) -> Batches:
        begun = time.time()
        batches: dict[str, Any] = {"batch_size": self._task.batch_size}
        if self._task.epochs > 1 and self._kept is None:
            self._kept = self._pipeline.materialize()
        if epoch:
            batches |= {
                "local_shuffle_buffer_size": self.train_samples,
                "local_shuffle_seed": self._task.seed + epoch,
            }
        for batch in (self._kept or self._pipeline).iter_torch_batches(**batches):
            self._bytes += sum(column.nbytes for column in batch.values())
            self._batches += 1
            if not epoch:
                self.starting_seconds = max(0.0, float(batch["ready"].min()) - begun)
            yield batch["features"].to(self._task.where), batch["label"].to(self._task.where)

    def validation(self) -> Batches:
        return ()

    def received(self) -> tuple[int, int]:
        """(bytes of features and labels, batches)"""
        return self._bytes, self._batches

    def _features(self, order: Sequence[int]) -> Any:
        """The pipeline, which runs when it is iterated over: {features, label} of the samples in that order."""
        paths = {f"{self._listing.bucket}/{self._listing.prefix}{key}": label for key, label in self._listing.samples}
        named = list(paths)
        _, transform = load_network(self._task.model, "none")
        files = self._ray.data.read_binary_files(
            [named[place] for place in order],
            filesystem=filesystem(),
            include_paths=True,
            override_num_blocks=math.ceil(self.train_samples / self._task.batch_size),
            num_cpus=PLACED["num_cpus"],
            resources=PLACED["resources"],
        )
        return files.map(ReadSample(paths, transform), **PLACED).map_batches(
            Backbone,
            fn_constructor_args=(self._task.model, self._task.weights, self._task.device, self._task.channels_last),
            batch_size=self._task.batch_size,
            compute=self._ray.data.ActorPoolStrategy(size=1),
            **PLACED,
        )


def filesystem() -> Any:
    """pyarrow's S3 with the settings of the others."""
    from pyarrow.fs import S3FileSystem

    settings = store_settings()
    scheme, _, endpoint = (settings["endpoint"] or "").rpartition("://")
    return S3FileSystem(
        access_key=settings["access_key"],
        secret_key=settings["secret_key"],
        region=settings["region"],
        endpoint_override=endpoint or None,
        scheme=scheme or "https",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON document on standard output."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cluster", required=True, help="address of the head node, HOST:PORT")
        parser.add_argument("--node-address", required=True, help="of this host's node")

    run(SYSTEM, RaySource, arguments, add=add)


if __name__ == "__main__":
    main()
