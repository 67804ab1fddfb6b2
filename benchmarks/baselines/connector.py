"""Plain PyTorch with awslabs' s3torchconnector: its map-style dataset, the other parts as in plain.

As its README shows it: S3MapDataset with a transform that makes a sample of an S3Reader, under DataLoader workers, each
with a client of its own (the connector makes it after the fork); path-style addresses for stores that are not AWS. The
objects are named in ImageFolder's order, so that the order of training is plain's. Its own listing by prefix gives no
labels and another order; listing is start-up, not part of an epoch.

Run it: python -m benchmarks.baselines.connector --data s3://photos --model torchvision:mobilenet_v2
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from benchmarks.baselines.objects import Listing, decoded, make_client, store_settings, uris
from benchmarks.baselines.peers import required
from benchmarks.baselines.plain import PlainSource
from benchmarks.baselines.training import Task, run

SYSTEM = "s3torchconnector"


class ReadSample:
    """(image, class, bytes read) of an S3Reader."""

    def __init__(self, labels: dict[str, int], transform: Callable[[Any], Tensor]) -> None:
        self.labels, self.transform = labels, transform

    def __call__(self, reader: Any) -> tuple[Tensor, int, int]:
        data = reader.read()
        return decoded(data, self.transform), self.labels[reader.key], len(data)


def open_dataset(uri: str, transform: Callable[[Any], Tensor]) -> Any:
    """An S3MapDataset over the photographs below an s3:// address, with `classes`."""
    s3torchconnector = required(SYSTEM)
    settings = store_settings()
    client = make_client()
    listing = Listing(uri, client)
    for name in ("access_key", "secret_key"):  # the connector looks where AWS's tools do
        if settings[name] is not None:
            os.environ["AWS_ACCESS_KEY_ID" if name == "access_key" else "AWS_SECRET_ACCESS_KEY"] = str(settings[name])
    dataset = s3torchconnector.S3MapDataset.from_objects(
        uris(listing, range(len(listing.samples))),
        region=client.meta.region_name,
        endpoint=settings["endpoint"],
        transform=ReadSample({listing.prefix + key: label for key, label in listing.samples}, transform),
        s3client_config=s3torchconnector.S3ClientConfig(force_path_style=settings["endpoint"] is not None),
    )
    dataset.classes = listing.classes
    return dataset


class ConnectorSource(PlainSource):
    """The features of an S3MapDataset."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, open_dataset)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON document on standard output."""
    run(SYSTEM, ConnectorSource, arguments)


if __name__ == "__main__":
    main()
