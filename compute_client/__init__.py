"""The compute tier: a data loader that yields finished backbone features, and what trains on them.

Importing it is cheap: the names below are resolved on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
