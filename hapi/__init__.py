"""HAPI: split-execution transfer learning.

`import hapi` is cheap: the names below are resolved on first use, from the room that owns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.errors import HapiError
from hapi.lazy import lazy_names

if TYPE_CHECKING:
    from compute_client import DataLoader, HeadTrainer, prepare
    from hapi.model import Cut, Graph, capture, load_archive, save_archive, split
    from profiler import profile

__version__ = "0.1.0"

_FRONT_DOOR = {
    "Cut": "hapi.model",
    "DataLoader": "compute_client",
    "Graph": "hapi.model",
    "HeadTrainer": "compute_client",
    "capture": "hapi.model",
    "load_archive": "hapi.model",
    "prepare": "compute_client",
    "profile": "profiler",
    "save_archive": "hapi.model",
    "split": "hapi.model",
}

__all__ = [
    "Cut",
    "DataLoader",
    "Graph",
    "HapiError",
    "HeadTrainer",
    "__version__",
    "capture",
    "load_archive",
    "prepare",
    "profile",
    "save_archive",
    "split",
]

__getattr__, __dir__ = lazy_names(__name__, _FRONT_DOOR)
