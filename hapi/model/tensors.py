"""Weights in the safetensors layout, inside a larger file: written as a stream, read by mapping the file.

Read by our own few lines because the section starts in mid-file and must be judged before anything is allocated.
The layout: 8 bytes header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes without gaps.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch

from hapi.errors import ArchiveError
from hapi.model.document import NAME, integers, parse_json

ALIGNMENT = 64
MOST_ELEMENTS = 2**60
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def header(weights: Mapping[str, torch.Tensor]) -> bytes:
    """The section up to its first tensor. Wider dtypes come first, so that every tensor lies aligned."""
    entries: dict[str, Any] = {}
    offset = 0
    for name in _in_file_order(weights):
        weight = weights[name]
        if weight.dtype not in _CODES:
            raise ArchiveError(f"weight {name} is {weight.dtype}; an archive holds {', '.join(map(str, _CODES))}.")
        end = offset + weight.nbytes
        entries[name] = {"dtype": _CODES[weight.dtype], "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def section_bytes(weights: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the whole section."""
    return len(header(weights)) + sum(weight.nbytes for weight in weights.values())


def chunks(weights: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The section, one tensor at a time; a weight on a GPU is copied when its turn comes."""
    yield header(weights)
    for name in _in_file_order(weights):
        if weights[name].nbytes:
            flat = weights[name].detach().to("cpu").contiguous().reshape(-1)
            yield memoryview(flat.view(torch.uint8).numpy().data)


def _in_file_order(weights: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))


def read(mapped: mmap.mmap, start: int, length: int, *, max_header: int, max_weights: int) -> dict[str, torch.Tensor]:
    """The tensors of a section of a mapped file, as views of the mapping; raises ArchiveError before touching them."""
    size = int.from_bytes(mapped[start : start + 8], "little") if length >= 8 else -1
    if not 0 <= size <= min(length - 8, max_header):
        raise ArchiveError(f"weights: a header of {size} bytes does not fit in {length} (limit {max_header}).")
    entries = parse_json(mapped[start + 8 : start + 8 + size], "weights")
    if len(entries) > max_weights:
        raise ArchiveError(f"weights: {len(entries)} tensors, more than the limit of {max_weights}.")
    first = start + 8 + size
    checked = sorted((_entry(name, entry) for name, entry in entries.items()), key=lambda item: (item[3], item[4]))
    expected = 0
    for name, dtype, shape, begin, end in checked:
        if begin != expected or end - begin != prod(shape) * dtype.itemsize or (first + begin) % dtype.itemsize:
            raise ArchiveError(f"weights: {name} of shape {shape} does not lie where it should.")
        expected = end
    if expected != length - 8 - size:
        raise ArchiveError(f"weights: the tensors take {expected} bytes, the file has {length - 8 - size} for them.")
    return {
        name: torch.frombuffer(mapped, dtype=dtype, count=prod(shape), offset=first + begin).reshape(shape)
        if prod(shape)
        else torch.empty(shape, dtype=dtype)
        for name, dtype, shape, begin, _ in checked
    }


def _entry(name: str, entry: Any) -> tuple[str, torch.dtype, tuple[int, ...], int, int]:
    if not NAME.fullmatch(name):
        raise ArchiveError(f"weights: {name[:80]!r} is not a name.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ArchiveError(f"weights: {name} must have dtype, shape and data_offsets.")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    offsets = integers(entry["data_offsets"], f"weights, {name}")
    if dtype is None or len(offsets) != 2:
        raise ArchiveError(f"weights: {name} has an unknown dtype or place.")
    shape = integers(entry["shape"], f"weights, {name}")
    if prod(max(size, 1) for size in shape) > MOST_ELEMENTS:  # strides are counted so, also where a size is 0
        raise ArchiveError(f"weights: {name} of shape {shape} is larger than can be.")
    return name, dtype, shape, offsets[0], offsets[1]
