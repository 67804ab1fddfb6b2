"""Models as data: capture a backbone as one graph, find its cuts, divide it, write it down and read it back."""

from __future__ import annotations

from hapi.model.capture import capture
from hapi.model.cuts import Cut
from hapi.model.graph import Graph
from hapi.model.program import Program
from hapi.model.specs import TensorSpec

__all__ = ["Cut", "Graph", "Program", "TensorSpec", "capture"]
