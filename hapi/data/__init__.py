"""What is read and how it becomes a model's input: stores, manifests, images, transforms."""

from hapi.data.build import build_manifest, dataset_root
from hapi.data.images import decode_image
from hapi.data.manifest import Manifest, Sample, read_sample
from hapi.data.stores import ObjectInfo, ObjectStore, normalize_uri, open_store
from hapi.data.transforms import TransformSpec, describe_transform, load_sample, sample_seed
from hapi.settings import StoreSettings

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
