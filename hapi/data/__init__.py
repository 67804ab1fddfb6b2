"""What is read and how it becomes a model's input: stores, manifests, images, transforms.

The names are resolved on first use, so that commands which only move bytes do not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.lazy import lazy_names

if TYPE_CHECKING:
    from hapi.data.build import build_manifest, dataset_root
    from hapi.data.images import decode_image
    from hapi.data.manifest import Manifest, Sample, read_sample
    from hapi.data.stores import ObjectInfo, ObjectStore, normalize_uri, open_store
    from hapi.data.transforms import TransformSpec, describe_transform, load_sample, sample_seed
    from hapi.settings import StoreSettings

_HOMES = {
    "Manifest": "hapi.data.manifest",
    "ObjectInfo": "hapi.data.stores",
    "ObjectStore": "hapi.data.stores",
    "Sample": "hapi.data.manifest",
    "StoreSettings": "hapi.settings",
    "TransformSpec": "hapi.data.transforms",
    "build_manifest": "hapi.data.build",
    "dataset_root": "hapi.data.build",
    "decode_image": "hapi.data.images",
    "describe_transform": "hapi.data.transforms",
    "load_sample": "hapi.data.transforms",
    "normalize_uri": "hapi.data.stores",
    "open_store": "hapi.data.stores",
    "read_sample": "hapi.data.manifest",
    "sample_seed": "hapi.data.transforms",
}

__all__ = [
    "Manifest",
    "ObjectInfo",
    "ObjectStore",
    "Sample",
    "StoreSettings",
    "TransformSpec",
    "build_manifest",
    "dataset_root",
    "decode_image",
    "describe_transform",
    "load_sample",
    "normalize_uri",
    "open_store",
    "read_sample",
    "sample_seed",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
