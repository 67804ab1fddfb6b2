"""From an address to a manifest."""

from __future__ import annotations

import os
from urllib.parse import unquote

from hapi.data.folder import folder_manifest
from hapi.data.lists import LIST_EXTENSIONS, list_manifest
from hapi.data.manifest import Manifest
from hapi.data.stores import ObjectStore, normalize_uri, open_store
from hapi.settings import StoreSettings


def build_manifest(
    source: ObjectStore | str | os.PathLike[str], listing: str | None = None, *, settings: StoreSettings | None = None
) -> Manifest:
    """Lists a dataset once: a folder (or bucket prefix) per class, a flat folder, or a list of files.

    An address that ends in .csv, .jsonl or .parquet is a list, whose paths are relative to the folder that holds it;
    with a store, `listing` is the key of the list. Raises ManifestError, or what the store raises.
    """
    if not isinstance(source, str | os.PathLike):
        return folder_manifest(source) if listing is None else list_manifest(source, listing)
    root, key = dataset_root(source)
    store = open_store(root, settings)
    try:
        return build_manifest(store, key if listing is None else listing)
    finally:
        store.close()


def dataset_root(uri: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The root of the store and, if `uri` names a list of files, its key below that root; both as addresses.

    What a server compares with the roots that it may serve, before it opens anything.
    """
    whole = normalize_uri(uri)
    if not whole.lower().endswith(LIST_EXTENSIONS):
        return whole, None
    folder, _, name = whole.rpartition("/")
    if folder == "s3:/":  # a bucket whose name ends like a list
        return whole, None
    if whole.startswith("s3://"):
        return folder, name
    return (folder if folder != "file://" else "file:///"), unquote(name)
