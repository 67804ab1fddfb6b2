"""Codecs: how the tensors of a cut are written into Arrow columns, and read back.

A column is Arrow's canonical fixed-shape tensor, so any Arrow reader understands it. Two kinds of values have no Arrow
type of their own and travel as their bits, with the field's metadata saying so: bfloat16 as uint16, bool as uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from hapi.errors import InputError, WireError

DTYPE_KEY = b"hapi.dtype"
"""Field metadata: dtype of the tensor that the reader gets."""
STORED_KEY = b"hapi.stored"
"""Field metadata: dtype of the values on the wire, when the codec made them narrower."""

MAX_DIMENSIONS = 16
MAX_VALUES_PER_SAMPLE = 2**31 - 1
"""Arrow's fixed-size lists count with 32 bits."""

_ARROW_TYPES = {
    torch.float64: pa.float64(),
    torch.float32: pa.float32(),
    torch.float16: pa.float16(),
    torch.bfloat16: pa.uint16(),
    torch.int64: pa.int64(),
    torch.int32: pa.int32(),
    torch.int16: pa.int16(),
    torch.int8: pa.int8(),
    torch.uint8: pa.uint8(),
    torch.bool: pa.uint8(),
}
_CARRIERS = {torch.bfloat16: torch.uint16, torch.bool: torch.uint8}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _ARROW_TYPES}


@dataclass(frozen=True)
class Codec:
    """One way to write tensors. `narrow` is what wider floating-point values are cast to; None keeps every dtype.

    Only floating-point tensors wider than `narrow` are cast; integers, masks and tensors that are already that narrow
    travel as they are. NaN and infinity survive every codec. float16 holds magnitudes up to 65504: larger ones become
    infinity, so prefer bfloat16 for backbones whose activations are not bounded.
    """

    name: str
    narrow: torch.dtype | None = None

    @property
    def exact(self) -> bool:
        """Whether what is read equals what was written, bit for bit."""
        return self.narrow is None

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which a tensor of `dtype` travels."""
        if self.narrow is not None and dtype.is_floating_point and dtype.itemsize > self.narrow.itemsize:
            return self.narrow
        return dtype

    def bytes_per_value(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes on the wire of one value of a tensor of `dtype`, before compression."""
        return self.stored(dtype).itemsize

    def field(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> pa.Field:
        """The Arrow field of a column holding tensors of `shape` (no batch dimension) and `dtype`; InputError."""
        if dtype not in _ARROW_TYPES:
            raise InputError(f"tensors of {dtype} cannot travel; a cut may carry: {', '.join(sorted(_NAMES))}.")
        values = math.prod(shape)
        if not 0 < values <= MAX_VALUES_PER_SAMPLE or any(size < 1 for size in shape):
            raise InputError(
                f"a tensor of shape {tuple(shape)} per sample cannot travel: it must hold 1 to 2^31 values."
            )
        stored = self.stored(dtype)
        metadata = {DTYPE_KEY: _name(dtype), STORED_KEY: _name(stored)}
        return pa.field(name, pa.fixed_shape_tensor(_ARROW_TYPES[stored], tuple(shape)), False, metadata)

    def encode(self, tensor: torch.Tensor) -> pa.ExtensionArray:
        """A CPU tensor (n, *shape) as an Arrow array of n fixed-shape tensors.

        No copy if the tensor is contiguous and the codec keeps its dtype, one copy else: so the tensor must not be
        written to until the array has been used.
        """
        if tensor.device.type != "cpu":
            raise InputError(
                f"only tensors in host memory can be encoded, this one is on {tensor.device}. Move it first."
            )
        shape = tuple(tensor.shape[1:])
        column = self.field("features", shape, tensor.dtype).type
        stored = self.stored(tensor.dtype)
        flat = tensor.detach().to(stored).contiguous().view(-1)
        flat = flat.view(_CARRIERS.get(stored, stored))
        values = pa.Array.from_buffers(_ARROW_TYPES[stored], flat.numel(), [None, pa.py_buffer(flat.numpy())])
        return pa.ExtensionArray.from_storage(column, pa.FixedSizeListArray.from_arrays(values, math.prod(shape)))


CODECS = {
    codec.name: codec
    for codec in (Codec("float32"), Codec("float16", torch.float16), Codec("bfloat16", torch.bfloat16))
}
"""By name. `float32` is the exact codec: it keeps every tensor's own dtype, whatever that is."""


def get_codec(name: str) -> Codec:
    """The codec called `name`; InputError lists those there are."""
    if name not in CODECS:
        raise InputError(f"unknown codec {name!r}; there are: {', '.join(sorted(CODECS))}.")
    return CODECS[name]


@dataclass(frozen=True)
class Column:
    """What a tensor column's field says: the per-sample shape, the dtype the reader gets, and the one on the wire."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype

    @classmethod
    def of(cls, field: pa.Field) -> Column:
        """Reads a field that somebody else wrote, refusing what `Codec.field` would not write (WireError)."""
        kind, metadata = field.type, field.metadata or {}
        if not isinstance(kind, pa.FixedShapeTensorType) or kind.permutation not in (None, []):
            raise WireError(f"feature stream: column {field.name!r} is {kind}, not a fixed-shape tensor.")
        shape = tuple(kind.shape)
        if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape) or math.prod(shape) > MAX_VALUES_PER_SAMPLE:
            raise WireError(f"feature stream: column {field.name!r} has the impossible shape {shape}.")
        dtype = _NAMES.get(metadata.get(DTYPE_KEY, b"").decode("ascii", "replace"))
        stored = _NAMES.get(metadata.get(STORED_KEY, b"").decode("ascii", "replace"))
        if dtype is None or stored is None or _ARROW_TYPES[stored] != kind.value_type:
            raise WireError(f"feature stream: column {field.name!r} does not say which dtype its values have.")
        if stored != dtype and not (stored.is_floating_point and dtype.is_floating_point):
            raise WireError(f"feature stream: column {field.name!r} casts {stored} to {dtype}, which no codec does.")
        return cls(shape, dtype, stored)

    def decode(self, array: pa.ExtensionArray) -> torch.Tensor:
        """The tensor (n, *shape). It shares the array's memory if no cast was needed; the caller owns both."""
        if array.null_count or array.storage.values.null_count:
            raise WireError("feature stream: a tensor column has nulls; failed samples are named by `error` instead.")
        if len(array) == 0:
            return torch.empty((0, *self.shape), dtype=self.dtype)
        # DLPack and not torch.from_numpy: that would warn of memory that Arrow marks read-only, but which is ours alone
        flat = torch.from_dlpack(array.storage.flatten())
        return flat.view(self.stored).view(len(array), *self.shape).to(self.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
