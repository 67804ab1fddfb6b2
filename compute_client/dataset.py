"""What a loader's `data` argument names: an address, a manifest, or a torchvision ImageFolder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from hapi.data import Manifest, ObjectStore, build_manifest, dataset_root, normalize_uri, open_store
from hapi.errors import HapiError, InputError, ManifestError, UnknownDatasetError
from hapi.wire.protocol import DatasetSummary
from profiler.remote import ServerClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A dataset as the loader needs it.

    Attributes:
        uri: address of the folder, bucket prefix or list.
        samples: how many there are.
        classes: names of the labels 0, 1, ...; empty without labels.
        bytes: stored size of all samples.
        digest: of the manifest that answers requests (the server's, when there is a server).
        order_digest: equal for equal lists of (key, label), wherever they lie.
        manifest: the list itself; None when only the server has it, who then gives it to `fetch`.
    """

    uri: str
    samples: int
    classes: tuple[str, ...]
    bytes: int
    digest: str
    order_digest: str
    manifest: Manifest | None
    fetch: Callable[[], Manifest] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.samples

    @property
    def input_bytes(self) -> float:
        """Mean stored size of a sample."""
        return self.bytes / self.samples

    @cached_property
    def listing(self) -> Manifest:
        """Every sample with its key; asked of the server, once, when this process has not listed the dataset."""
        if self.manifest is not None:
            return self.manifest
        assert self.fetch is not None
        return self.fetch()

    def describe(self, index: int, reason: str) -> str:
        """What is wrong with a sample, in words, with its key."""
        try:
            key = self.listing.sample(index).key
        except HapiError as error:  # it is the reason that matters
            log.info("the name of sample %d could not be had: %s", index, error)
            return f"sample {index} of {self.uri}: {reason}"
        return f"sample {index} ({key}) of {self.uri}: {reason.removeprefix(f'{key}: ')}"

    def open_store(self) -> ObjectStore:
        """The store that holds the samples."""
        root, _ = dataset_root(self.uri)
        return open_store(root)


def resolve(data: Any, server: ServerClient | None) -> tuple[Dataset, Any]:
    """The dataset that `data` names, and the transform that came with it (of an ImageFolder; else None).

    With a server, the server lists it: this process needs no access to the store. A Manifest or ImageFolder is then
    compared with the server's list (ManifestError if they differ).
    """
    uri, manifest, transform = _read(data)
    if server is None:
        manifest = manifest or build_manifest(uri)
        if not len(manifest):
            raise ManifestError(f"{uri}: no samples in it. Name a folder with images, or one folder per class.")
        return _of_manifest(uri, manifest), transform
    summary = server.register(uri)
    if summary.samples < 1:
        raise ManifestError(f"{uri}: the server found no samples there. Name a folder with images.")
    if manifest is not None and summary.order_digest != manifest.order_digest:
        raise ManifestError(
            f"{uri}: the server lists {summary.samples} samples, this process {len(manifest)}, or names or labels "
            "differ. Bring both to the same files."
        )
    return _of_summary(summary, manifest, partial(_fetch, server, summary)), transform


def _read(data: Any) -> tuple[str, Manifest | None, Any]:
    if isinstance(data, Manifest):
        return data.uri, data, None
    if isinstance(data, str | os.PathLike):
        return normalize_uri(data), None, None
    root = getattr(data, "root", None)
    if isinstance(root, str | Path) and hasattr(data, "samples") and hasattr(data, "class_to_idx"):
        return _read_image_folder(data, Path(root))
    if isinstance(data, Subset):
        raise InputError("data is a Subset: pass its dataset instead, and indices=subset.indices.")
    raise InputError(
        f"data is a {type(data).__name__}: HAPI reads an address (path, file://, s3://), a Manifest, or a torchvision "
        "ImageFolder. Name where the files lie."
    )


def _read_image_folder(folder: Any, root: Path) -> tuple[str, Manifest, Any]:
    """Samples are read as the folder's rule says; what a server could not know is refused."""
    if getattr(folder, "target_transform", None) is not None:
        raise InputError(
            "ImageFolder with a target_transform: HAPI yields the labels as they are. Map them in the loop."
        )
    manifest = build_manifest(str(root))
    listed = [(Path(path), label) for path, label in folder.samples]
    mine = [(root / manifest.sample(i).key, manifest.sample(i).label) for i in range(len(manifest))]
    if list(folder.classes) != list(manifest.classes) or listed != mine:
        raise InputError(
            f"ImageFolder({str(root)!r}) lists {len(listed)} samples, HAPI {len(mine)} there, or in another order: "
            "it was built with its own rule for files or classes. Give a list (CSV with path,label) as data."
        )
    return normalize_uri(str(root)), manifest, folder.transform


def _of_manifest(uri: str, manifest: Manifest) -> Dataset:
    return Dataset(
        uri,
        len(manifest),
        tuple(manifest.classes),
        manifest.total_bytes,
        manifest.digest,
        manifest.order_digest,
        manifest,
    )


def _fetch(server: ServerClient, summary: DatasetSummary) -> Manifest:
    try:
        return server.manifest(summary.digest)
    except UnknownDatasetError:  # it was started anew, with nothing kept
        server.register(summary.uri)
        return server.manifest(summary.digest)


def _of_summary(summary: DatasetSummary, manifest: Manifest | None, fetch: Callable[[], Manifest]) -> Dataset:
    return Dataset(
        summary.uri,
        summary.samples,
        tuple(summary.classes),
        summary.bytes,
        summary.digest,
        summary.order_digest,
        manifest,
        fetch,
    )
