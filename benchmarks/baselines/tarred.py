"""Plain PyTorch with WebDataset: tar shards in a bucket, streamed by several workers.

As its pages show it: shards in shuffled order, split over the workers, samples shuffled within a buffer, decoded and
batched in the workers, batched anew in the main process; WebLoader with batch_size=None. It knows no keys of S3, so the
shards are named by presigned addresses, which it reads with curl. Where there are later epochs, its cache keeps the
shards on disk. Its order is its own.

Run it: python -m benchmarks.baselines.tarred --data s3://photos --shards s3://shards --model torchvision:mobilenet_v2
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.networks import Extractor, load_network
from benchmarks.baselines.objects import EXTENSIONS, decoded, make_client
from benchmarks.baselines.peers import PeerMissingError, required
from benchmarks.baselines.shards import INDEX, place_of
from benchmarks.baselines.training import Batches, Starting, Task, run, temporary_folder

SYSTEM = "webdataset"
BUFFER, BUFFER_AT_FIRST = 1000, 8
"""Samples of the shuffle buffer, and how many must be there for the first to leave: decoding begins early."""
VALID_SECONDS = 24 * 3600


class ReadSample:
    """(image, class) of a sample of the shards."""

    def __init__(self, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, int]:
        (photograph,) = (data for name, data in sample.items() if f".{name}" in EXTENSIONS)
        return decoded(photograph, self.transform), int(sample["cls"])


class TarredSource:
    """The features of the photographs in tar shards."""

    val_samples = 0

    def __init__(self, task: Task, *, shards: str) -> None:
        wds = required(SYSTEM)
        if task.val_split:
            raise ValueError("webdataset: its samples come as a stream, of which none is held out: give --val-split 0.")
        if shutil.which("curl") is None:
            raise PeerMissingError("webdataset reads http addresses with curl, which is not installed.")
        backbone, transform = load_network(task.model, task.weights)
        client, (bucket, prefix) = make_client(), place_of(shards)
        index = json.loads(client.get_object(Bucket=bucket, Key=prefix + INDEX)["Body"].read())
        self.classes: Sequence[str] = index["classes"]
        self.train_samples: int = index["samples"]
        self._bytes: int = index["bytes"]
        self._passes = 0
        self._cache = temporary_folder(self, "shards") if task.epochs > 1 else None
        addresses = [self._address(client, bucket, prefix + name) for name in index["shards"]]
        self._shards = len(addresses)
        samples = wds.WebDataset(
            addresses,
            shardshuffle=len(addresses),
            detshuffle=True,  # another order in each epoch, the same in each run
            seed=task.seed,
            cache_dir=str(self._cache) if self._cache else None,
            empty_check=False,
        )
        samples.append(wds.filters.detshuffle(BUFFER, BUFFER_AT_FIRST, seed=task.seed))
        samples.append(wds.filters.map(ReadSample(transform)))
        samples.append(wds.filters.batched(task.batch_size))
        self._starting = Starting()
        loading = {**task.loading(), "batch_size": None, "worker_init_fn": self._starting}
        self._loader = wds.WebLoader(samples, **loading).unbatched().batched(task.batch_size)
        self._extract = Extractor(backbone, task.where, channels_last=task.channels_last)

    @property
    def starting_seconds(self) -> float:
        return self._starting.seconds

    def training(self, epoch: int) -> Batches:
        self._passes += 1
        if not epoch:
            self._starting.begins()
        for images, labels in self._loader:
            yield self._extract(images), torch.as_tensor(labels).to(self._extract.device)

    def validation(self) -> Batches:
        return ()

    def received(self) -> tuple[int, int]:
        read = 1 if self._cache else self._passes
        return read * self._bytes, read * self._shards

    @staticmethod
    def _address(client: Any, bucket: str, key: str) -> str:
        where = {"Bucket": bucket, "Key": key}
        return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=VALID_SECONDS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON document on standard output."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--shards", required=True, help="where benchmarks.baselines.shards wrote: an s3:// address")

    run(SYSTEM, TarredSource, arguments, add=add)


if __name__ == "__main__":
    main()
