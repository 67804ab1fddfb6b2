"""The photographs of the baselines: ImageFolder's rule over a folder, or over objects of a bucket read with boto3."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of ImageFolder
READ_ATTEMPTS = 5


class Listing:
    """What is below `s3://bucket/prefix` in ImageFolder's order: `samples` are (key after the prefix, class)."""

    def __init__(self, uri: str, client: Any) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        found = [item["Key"][len(self.prefix) :] for page in pages for item in page.get("Contents", [])]
        keys = [key for key in found if "/" in key and key.lower().endswith(EXTENSIONS)]
        self.classes = sorted({key.split("/")[0] for key in keys})
        keys.sort(key=lambda key: (key.split("/")[0], *os.path.split(key)))
        self.samples = [(key, self.classes.index(key.split("/")[0])) for key in keys]


class S3ImageFolder(Dataset[tuple[Tensor, int, int]]):
    """ImageFolder's rule over the objects of `s3://bucket/prefix`; a sample is (image, class, bytes read)."""

    def __init__(self, uri: str, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform
        self._client: Any = None
        listing = Listing(uri, self.client)
        self.bucket, self.prefix = listing.bucket, listing.prefix
        self.classes, self.samples = listing.classes, listing.samples

    @property
    def client(self) -> Any:
        """One per process: boto3 clients must not cross a fork."""
        if self._client is None or self._client[0] != os.getpid():
            self._client = os.getpid(), make_client()
        return self._client[1]

    def open(self) -> None:
        """Makes this process's client, which the first photograph would otherwise do."""
        _ = self.client

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are no forks: boto3 clients cannot be pickled."""
        return {**self.__dict__, "_client": None}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        key, label = self.samples[index]
        data = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
        return decoded(data, self.transform), label, len(data)


def decoded(data: bytes, transform: Callable[[Any], Tensor]) -> Tensor:
    """The transformed image of a file's bytes, decoded with PIL as ImageFolder does it."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return transform(image.convert("RGB"))


def open_dataset(uri: str, transform: Callable[[Any], Tensor]) -> Any:
    """ImageFolder over a path or file:// address, S3ImageFolder over an s3:// one."""
    if uri.startswith("s3://"):
        return S3ImageFolder(uri, transform)
    from torchvision.datasets import ImageFolder

    return ImageFolder(uri.removeprefix("file://"), transform)


def store_settings() -> dict[str, str | None]:
    """(endpoint, keys, region) of the store: AWS, or what HAPI_S3_ENDPOINT names (as for HAPI itself)."""
    endpoint = os.environ.get("HAPI_S3_ENDPOINT") or None
    return {
        "endpoint": endpoint,
        "access_key": os.environ.get("HAPI_S3_ACCESS_KEY") or None,
        "secret_key": os.environ.get("HAPI_S3_SECRET_KEY") or None,
        "region": os.environ.get("HAPI_S3_REGION") or ("us-east-1" if endpoint else None),
    }


def make_client(settings: dict[str, str | None] | None = None) -> Any:
    """A boto3 client of that store."""
    import boto3
    from botocore.config import Config

    settings = settings or store_settings()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings["endpoint"],
        aws_access_key_id=settings["access_key"],
        aws_secret_access_key=settings["secret_key"],
        region_name=settings["region"],
        config=Config(
            retries={"mode": "standard", "max_attempts": READ_ATTEMPTS},
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if settings["endpoint"] else {},
        ),
    )


def uris(listing: Listing, part: Sequence[int]) -> list[str]:
    """The addresses of some of the samples."""
    return [f"s3://{listing.bucket}/{listing.prefix}{listing.samples[place][0]}" for place in part]
