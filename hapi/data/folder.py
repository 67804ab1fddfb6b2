"""A manifest from what lies in a store: a folder per class, or one flat folder of images without labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hapi.data.manifest import Manifest, table_of
from hapi.data.stores import ObjectInfo, ObjectStore
from hapi.errors import ManifestError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS; upper or lower case alike."""

_IMAGE = "(?is)(" + "|".join(extension.replace(".", r"\.") for extension in IMAGE_EXTENSIONS) + ")$"
_CHUNK = 1 << 16


def folder_manifest(store: ObjectStore) -> Manifest:
    """The samples below the store's root, by the rule of `torchvision.datasets.ImageFolder`.

    Each folder at the top is a class, in alphabetical order; all images at any depth below it belong to it, sorted by
    their folder and then by name; what lies beside the folders is ignored. A class without an image is an error.
    Without any folder, the images at the top are samples without labels, sorted by name.
    """
    found = _columns(store.list(), store.uri)
    keys = found["key"]
    is_image = pc.match_substring_regex(keys, _IMAGE)
    in_folder = pc.match_substring(keys, "/")
    if not pc.any(in_folder).as_py():
        flat = found.filter(is_image)
        if not found.num_rows:
            raise ManifestError(f"{store.uri}: nothing lies there. Check the address, or push a dataset to it.")
        if not flat.num_rows:
            raise ManifestError(
                f"{store.uri}: no images among its {found.num_rows} files. {_known()} A list of files may name others."
            )
        flat = flat.take(pc.sort_indices(flat, sort_keys=[("key", "ascending")]))
        return Manifest(store.uri, (), table_of(flat["key"], flat["length"], flat["version"]))

    below = found.filter(in_folder)
    classes = sorted(pc.unique(_first_part(below["key"])).to_pylist())
    images = found.filter(pc.and_(is_image, in_folder))
    owner = _first_part(images["key"])
    _check_none_empty(store.uri, classes, pc.unique(owner).to_pylist())
    labels = pc.index_in(owner, pa.array(classes, pa.large_string())).cast(pa.int64())
    folders = pc.replace_substring_regex(images["key"], r"(?s)/[^/]*$", "")
    names = pc.replace_substring_regex(images["key"], r"(?s)^.*/", "")
    order = pc.sort_indices(
        pa.table({"label": labels, "folder": folders, "name": names}),
        sort_keys=[("label", "ascending"), ("folder", "ascending"), ("name", "ascending")],
    )
    images = images.take(order)
    table = table_of(images["key"], images["length"], images["version"], labels.take(order))
    return Manifest(store.uri, classes, table)


def _columns(objects: Iterable[ObjectInfo], uri: str) -> pa.Table:
    """A listing as columns, a chunk at a time, so that no more than a chunk lives as Python objects."""
    schema = pa.schema([("key", pa.large_string()), ("length", pa.int64()), ("version", pa.large_string())])
    chunks = []
    listing = iter(objects)
    while chunk := list(itertools.islice(listing, _CHUNK)):
        sizes = np.fromiter((item.size for item in chunk), np.int64, len(chunk))
        try:
            arrays = [
                pa.array([item.key for item in chunk], pa.large_string()),
                pa.array(sizes),
                pa.array([item.version for item in chunk], pa.large_string()),
            ]
        except (UnicodeEncodeError, pa.ArrowInvalid) as error:
            raise ManifestError(f"{uri}: a file name in it is not valid UTF-8 ({error}). Rename it.") from error
        chunks.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(chunks, schema)


def _check_none_empty(uri: str, classes: Sequence[str], filled: Iterable[str]) -> None:
    if empty := sorted(set(classes) - set(filled)):
        names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        folders = "class folders" if len(empty) > 1 else "class folder"
        raise ManifestError(
            f"{uri}: no images in the {folders} {names}. {_known()} Remove what is no class, or give a list of files."
        )


def _first_part(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(keys, r"(?s)/.*$", "")


def _known() -> str:
    return f"Known image extensions: {' '.join(IMAGE_EXTENSIONS)}."
