"""What a store of objects is: a root, keys below it, and five verbs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hapi.errors import AccessDeniedError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object. `version` changes whenever its bytes do; it is compared, never parsed."""

    key: str
    size: int
    version: str

    @property
    def is_folder(self) -> bool:
        """An empty folder (or a folder marker of an S3 console) shows as a key that ends in a slash."""
        return self.key.endswith("/")


class ObjectStore(Protocol):
    """A folder or a bucket prefix. Keys are relative to its root, with forward slashes, and cannot leave it.

    Every method may raise ObjectNotFoundError, AccessDeniedError, StoreUnavailableError or StoreError.
    Stores may be used from several threads, and pickled or forked: each process connects for itself.
    """

    @property
    def uri(self) -> str:
        """The root, `file:///path` or `s3://bucket/prefix`, without a slash at the end."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` (a string prefix, as in S3), in no promised order."""
        ...

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or exactly `length` of them from `offset`; fewer in the store is a StoreError."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes the whole object, or leaves what was there."""
        ...

    def info(self, key: str) -> ObjectInfo: ...

    def close(self) -> None:
        """Gives connections back. The store may be used again: it connects anew."""
        ...


class ErasableStore(ObjectStore, Protocol):
    """A store of which objects can be removed, for what is only kept there for a while."""

    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error."""
        ...


def check_key(key: str, uri: str) -> str:
    """The key, or AccessDeniedError if it could leave the root: absolute, with `.` or `..` parts, or a NUL."""
    if not key or key.startswith("/") or "\0" in key or any(part in (".", "..") for part in key.split("/")):
        raise AccessDeniedError(f"key {key!r} does not stay below {uri}. Use a key relative to it, without '..' parts.")
    return key


def check_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")
