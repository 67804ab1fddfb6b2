"""The storage server: runs the first part of a network next to the object store, and streams its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.lazy import lazy_names

if TYPE_CHECKING:
    from storage_server.http.app import create_app
    from storage_server.settings import ServerSettings

_HOMES = {"ServerSettings": "storage_server.settings", "create_app": "storage_server.http.app"}

__all__ = ["ServerSettings", "create_app"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
