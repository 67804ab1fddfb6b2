"""Models as data: capture a backbone as one graph, find its cuts, divide it, write it down and read it back."""

from __future__ import annotations

from hapi.model.archive import ArchiveLimits, archive_bytes, archive_chunks, load_archive, save_archive
from hapi.model.boundary import split
from hapi.model.capture import capture
from hapi.model.cuts import Cut
from hapi.model.graph import Graph
from hapi.model.node import Node
from hapi.model.program import Program
from hapi.model.specs import TensorSpec, ValueSpec
from hapi.model.zoo import LoadedModel, load_model

__all__ = [
    "ArchiveLimits",
    "Cut",
    "Graph",
    "LoadedModel",
    "Node",
    "Program",
    "TensorSpec",
    "ValueSpec",
    "archive_bytes",
    "archive_chunks",
    "capture",
    "load_archive",
    "load_model",
    "save_archive",
    "split",
]
