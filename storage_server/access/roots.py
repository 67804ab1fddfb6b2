"""Which addresses a client may name: those below an allowed root, after both have been normalised."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import unquote

from hapi.data.stores import normalize_uri
from hapi.errors import ForbiddenError, InputError

_FILE = "file://"


def canonical(uri: str, *, follow_links: bool = False) -> str:
    """The one way to write `uri`, with symbolic links of folders resolved unless links are trusted.

    InputError for anything that is not an absolute path, file:///path or s3://bucket/prefix: what a client calls
    relative has no meaning on this machine.
    """
    if "://" not in uri and not os.path.isabs(uri):
        raise InputError(f"dataset address {uri!r} is relative. Give an absolute path, file:///path or s3://bucket.")
    normal = normalize_uri(uri)
    if normal.startswith(_FILE) and not follow_links:
        return normalize_uri(os.path.realpath(unquote(normal[len(_FILE) :])))
    return normal


class Roots:
    """A set of roots; everything below one of them is allowed."""

    def __init__(self, uris: Iterable[str], *, follow_links: bool = False) -> None:
        self._follow_links = follow_links
        self.uris = tuple(dict.fromkeys(canonical(uri, follow_links=follow_links) for uri in uris))

    def __contains__(self, uri: str) -> bool:
        """Whether `uri` is a root or lies below one, by whole path segments (`/data` does not allow `/database`)."""
        return any(uri == root or uri.startswith(root.rstrip("/") + "/") for root in self.uris)

    def admit(self, uri: str) -> str:
        """The canonical form of `uri`; ForbiddenError if it lies below no root."""
        normal = canonical(uri, follow_links=self._follow_links)
        if normal not in self:
            raise ForbiddenError(
                f"{uri} is not below a root that may be read: {', '.join(self.uris) or 'none'}. "
                "Name a dataset below one of them, or ask the operator of the server for another root."
            )
        return normal

    def outside(self, other: Roots) -> tuple[str, ...]:
        """The roots of this set that lie outside of `other`'s."""
        return tuple(uri for uri in self.uris if uri not in other)
