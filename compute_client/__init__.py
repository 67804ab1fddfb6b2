"""The compute tier: a data loader that yields finished backbone features, and what trains on them.

Importing it is cheap: the names below are resolved on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute_client.head import load_head
    from compute_client.loader import DataLoader
    from compute_client.preparing import prepare
    from compute_client.train import HeadTrainer
    from profiler.remote import ServerClient

_HOMES = {
    "DataLoader": "compute_client.loader",
    "HeadTrainer": "compute_client.train",
    "ServerClient": "profiler.remote",
    "load_head": "compute_client.head",
    "prepare": "compute_client.preparing",
}

__all__ = ["DataLoader", "HeadTrainer", "ServerClient", "load_head", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compute_client' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
