"""The storage server: runs the first part of a network next to the object store, and streams its features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage_server.http.app import create_app
    from storage_server.settings import ServerSettings

_HOMES = {"ServerSettings": "settings", "create_app": "http.app"}

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'storage_server' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"storage_server.{_HOMES[name]}"), name)
