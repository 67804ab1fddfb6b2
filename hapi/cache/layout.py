"""Tensors as plain bytes: a short description, then the values of each, one after the other."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import torch

DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
KEPT = frozenset(_NAMES)
MAX_DIMENSIONS = 16
MOST_ELEMENTS = 2**56


def describe(tensors: tuple[torch.Tensor, ...]) -> bytes:
    """Dtypes and shapes, as JSON; KeyError for a dtype that is not kept."""
    told = [[_NAMES[tensor.dtype], list(tensor.shape)] for tensor in tensors]
    return json.dumps(told, separators=(",", ":")).encode()


def described_bytes(description: bytes) -> int:
    """How many bytes of values follow; ValueError for a description that `describe` did not write."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in kinds(description))


def allocate(description: bytes) -> tuple[torch.Tensor, ...]:
    """Tensors of these dtypes and shapes, to be filled; ValueError as above."""
    return tuple(torch.empty(shape, dtype=dtype) for dtype, shape in kinds(description))


def allocate_rows(description: bytes, count: int) -> tuple[torch.Tensor, ...]:
    """The same for `count` entries that are described alike, (count, *shape)."""
    return tuple(torch.empty((count, *shape), dtype=dtype) for dtype, shape in kinds(description))


def buffers(tensors: tuple[torch.Tensor, ...]) -> list[memoryview]:
    """The memory of contiguous host tensors, to be read from or written to."""
    return [tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in tensors]


@lru_cache(maxsize=64)
def kinds(description: bytes) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
    """Dtype and shape of each tensor; ValueError for a description that `describe` did not write."""
    document: Any = json.loads(description)
    if not isinstance(document, list):
        raise ValueError("not a list")
    found = []
    for item in document:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], list)):
            raise ValueError("not a dtype and a shape")
        name, shape = item
        if name not in DTYPES or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"no tensor is {name} {shape}")
        if math.prod(max(1, n) for n in shape) >= MOST_ELEMENTS:  # zeros among them would hide it
            raise ValueError(f"no tensor is as large as {shape}")
        found.append((DTYPES[name], tuple(shape)))
    return tuple(found)
