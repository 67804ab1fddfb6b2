"""Writes photographs of a bucket as WebDataset tar shards into another: what that system's users do once, beforehand.

A sample is two files, NUMBER.ENDING with the bytes of the photograph as they are and NUMBER.cls with its class; the
samples are shuffled before they are packed, as WebDataset's pages advise. `index.json` beside the shards says what they
hold.

Run it: python -m benchmarks.baselines.shards --data s3://photos --to s3://shards
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.baselines.objects import Listing, make_client
from benchmarks.baselines.peers import required

INDEX = "index.json"
MOST_SAMPLES = 1000
"""Of a shard: about 100 MB, the least that the pages advise."""
FEWEST = 8
"""Shards: several for each worker, however few photographs there are."""


def write(data: str, to: str, *, seed: int = 0) -> dict[str, Any]:
    """Answers what the index says: names, classes, samples and bytes of the shards. Makes the bucket, if need be."""
    webdataset = required("webdataset")
    client = make_client()
    listing = Listing(data, client)
    bucket, prefix = place_of(to)
    if bucket not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)
    order = torch.randperm(len(listing.samples), generator=torch.Generator().manual_seed(seed))
    names, total = [], 0
    for number, part in enumerate(order.tensor_split(min(len(order), max(FEWEST, -(-len(order) // MOST_SAMPLES))))):
        names.append(f"{number:06d}.tar")
        with tempfile.TemporaryFile() as file:
            with webdataset.TarWriter(file, encoder=False) as tar:
                for place in part.tolist():
                    key, label = listing.samples[place]
                    photograph = client.get_object(Bucket=listing.bucket, Key=listing.prefix + key)["Body"].read()
                    ending = key.rsplit(".", 1)[1].lower()
                    tar.write({"__key__": f"{place:08d}", ending: photograph, "cls": str(label).encode()})
            total += file.seek(0, 2)
            file.seek(0)
            client.upload_fileobj(file, bucket, prefix + names[-1])
    index = {"classes": listing.classes, "samples": len(order), "bytes": total, "shards": names}
    client.put_object(Bucket=bucket, Key=prefix + INDEX, Body=json.dumps(index).encode())
    return index


def place_of(uri: str) -> tuple[str, str]:
    """(bucket, prefix that ends with a slash or is empty)"""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the index on standard output."""
    parser = argparse.ArgumentParser(description="Write photographs of a bucket as WebDataset tar shards.")
    parser.add_argument("--data", required=True, help="a folder per class: an s3:// address")
    parser.add_argument("--to", required=True, help="an s3:// address, of another bucket or folder")
    parser.add_argument("--seed", type=int, default=0, help="of the order within the shards")
    print(json.dumps(write(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
