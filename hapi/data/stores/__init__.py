"""Object stores behind one small protocol: folders and S3-compatible buckets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hapi.data.stores.base import ErasableStore, ObjectInfo, ObjectStore
from hapi.data.stores.local import LocalStore
from hapi.data.stores.s3 import S3Store
from hapi.errors import InputError
from hapi.settings import StoreSettings

__all__ = [
    "ErasableStore",
    "LocalStore",
    "ObjectInfo",
    "ObjectStore",
    "S3Store",
    "described",
    "normalize_uri",
    "open_store",
    "opened_again",
]


def open_store(uri: str | os.PathLike[str], settings: StoreSettings | None = None) -> ErasableStore:
    """The store whose root is `uri`: a path, `file:///path` or `s3://bucket/prefix`. Nothing is read yet.

    Without `settings` they come from the environment (see StoreSettings). InputError for any other address.
    """
    settings = settings or StoreSettings.load()
    scheme, place = _split(uri)
    if scheme == "s3":
        bucket, _, prefix = place.partition("/")
        return S3Store(bucket, prefix, settings)
    return LocalStore(place, follow_links=settings.follow_links)


def described(store: ObjectStore) -> str | None:
    """JSON from which another process of this machine opens the same store, secrets included; None: it cannot."""
    values: dict[str, Any]
    if type(store) is LocalStore:  # and nothing that is made from one
        values = {"HAPI_FILE_FOLLOW_LINKS": store.follows_links}
    elif type(store) is S3Store:
        values = store.settings.to_json()
    else:
        return None
    return json.dumps({"uri": store.uri, "settings": values})


def opened_again(description: str) -> ErasableStore:
    """The store that `described` told of."""
    told = json.loads(description)
    return open_store(told["uri"], StoreSettings.load(**told["settings"]))


def normalize_uri(uri: str | os.PathLike[str]) -> str:
    """The one way to write a root: `file:///absolute/path` or `s3://bucket/prefix`, without a slash at the end."""
    scheme, place = _split(uri)
    return f"s3://{place}" if scheme == "s3" else Path(place).as_uri()


def _split(uri: str | os.PathLike[str]) -> tuple[str, str]:
    """('s3', 'bucket/prefix') or ('file', '/absolute/path')."""
    text = os.fspath(uri)
    if not text or "\0" in text:
        raise InputError(f"dataset address {text!r} is empty or malformed. Give a path, file:///path or s3://bucket.")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        return "file", os.path.abspath(os.path.expanduser(text))
    if scheme[1].lower() == "s3":
        bucket, _, prefix = text[len("s3://") :].partition("/")
        if not bucket:
            raise InputError(f"{text!r} names no bucket. Say s3://bucket or s3://bucket/prefix.")
        if any(part in (".", "..") for part in prefix.split("/")):
            raise InputError(f"{text!r} has '.' or '..' parts. Name the prefix itself.")
        return "s3", f"{bucket}/{prefix.strip('/')}".rstrip("/")
    host, slash, path = text[len(scheme[0]) :].partition("/")
    if scheme[1].lower() == "file" and host in ("", "localhost") and slash:
        return "file", os.path.abspath("/" + unquote(path))
    raise InputError(f"{text!r}: not an address of a dataset. Give a path, file:///path or s3://bucket/prefix.")
