"""The one engine that runs prefixes, suffixes and whole graphs, on both tiers: eager, folded, compiled, bf16."""

from __future__ import annotations

from hapi.engine.compiler import Compiler
from hapi.engine.engine import CHOICES, Choice, Engine, shared_compiler
from hapi.engine.module import LARGEST_BATCH
from hapi.engine.precision import PRECISIONS, TOLERANCE, Precision, check_precision, exact_sums, has_bf16
from hapi.engine.shelf import Shelf

__all__ = [
    "CHOICES",
    "LARGEST_BATCH",
    "PRECISIONS",
    "TOLERANCE",
    "Choice",
    "Compiler",
    "Engine",
    "Precision",
    "Shelf",
    "check_precision",
    "exact_sums",
    "has_bf16",
    "shared_compiler",
]
