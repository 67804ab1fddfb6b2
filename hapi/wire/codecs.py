"""Codecs: how the tensors of a cut are written into Arrow columns.

A column is Arrow's canonical fixed-shape tensor, so any Arrow reader understands it. Two kinds of values have no Arrow
type of their own and travel as their bits, with the field's metadata saying so: bfloat16 as uint16, bool as uint8.
With `int8` a column `features` of uint8 is followed by `features_scale` and `features_offset` (float32, of a shape that
broadcasts): the values are features * scale + offset.
With compression `packed` float32 values travel in `features_nonzero` (uint8, a bitmap) and `features_values` (a list of
exponent, high, low) instead of `features`, see `packed`; the field's metadata says of which shape.

`lz4` and `zstd` compress tensors as they are, without shuffling bytes. Measured on photographs through MobileNetV2 and
SqueezeNet, zstd makes float32 features after a ReLU (60 to 75 % zeros) 2.4 to 3.9 times smaller as they are and 2.2 to
3.2 times with their bytes in planes, since runs of zeros are cut up; elsewhere planes gain 2 to 10 % for twice the
time. `packed` takes zeros out first, so that no runs are left to be cut, and makes planes of what remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from hapi.errors import InputError
from hapi.wire.packed import bitmap_bytes, pack
from hapi.wire.quantised import quantise, scale_shape

DTYPE_KEY = b"hapi.dtype"
"""Field metadata: dtype of the tensor that the reader gets."""
STORED_KEY = b"hapi.stored"
"""Field metadata: dtype of the values on the wire, when the codec made them narrower."""
SCALE_SUFFIX, OFFSET_SUFFIX = "_scale", "_offset"
"""Names of the two columns that follow one whose floating-point values travel as uint8."""
NONZERO_SUFFIX, VALUES_SUFFIX = "_nonzero", "_values"
"""Names of the two columns in which float32 values travel that are packed."""
PACKED = "packed"
"""Name of the compression, and in field metadata what is stored."""
SHAPE_KEY = b"hapi.shape"
"""Field metadata of a bitmap: per-sample shape of the tensor, as in `64,7,7`."""
_PARTS = {"exponent": pa.uint8(), "high": pa.uint8(), "low": pa.uint16()}
PACKED_VALUE = pa.struct([pa.field(name, kind, False) for name, kind in _PARTS.items()])
PACKED_VALUES = pa.large_list(pa.field("item", PACKED_VALUE, False))
"""Arrow keeps the parts of a struct in buffers of their own, each of which is compressed by itself."""

MAX_DIMENSIONS = 16
MAX_VALUES_PER_SAMPLE = 2**31 - 1
"""Arrow's fixed-size lists count with 32 bits."""

ARROW_TYPES = {
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
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in ARROW_TYPES}


@dataclass(frozen=True)
class Codec:
    """One way to write tensors. `narrow` is what wider floating-point values become; None keeps every dtype.
    `packs` takes apart what is float32 on the wire (see `packed`), and changes nothing of what is read.

    Only floating-point tensors wider than `narrow` are changed; integers, masks and tensors that are already that
    narrow travel as they are. NaN and infinity survive float16 and bfloat16. float16 holds magnitudes up to 65504:
    larger ones become infinity, so prefer bfloat16 for backbones whose activations are not bounded. `int8` (narrow is
    uint8) is described in `quantised`.
    """

    name: str
    narrow: torch.dtype | None = None
    packs: bool = False

    @property
    def exact(self) -> bool:
        """Whether what is read equals what was written, bit for bit."""
        return self.narrow is None

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which a tensor of `dtype` travels."""
        if self.narrow is not None and dtype.is_floating_point and dtype.itemsize > self.narrow.itemsize:
            return self.narrow
        return dtype

    def is_scaled(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of `dtype` travels as steps, with scale and offset."""
        return dtype.is_floating_point and not self.stored(dtype).is_floating_point

    def is_packed(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of `dtype` travels in parts."""
        return self.packs and self.stored(dtype) == torch.float32

    def bytes_per_row(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
        """Most bytes on the wire of one sample's tensor (shape without the batch dimension), before compression."""
        scales = 2 * 4 * math.prod(scale_shape(shape)) if self.is_scaled(dtype) else 0
        bits = bitmap_bytes(math.prod(shape)) + 8 if self.is_packed(dtype) else 0
        return math.prod(shape) * self.stored(dtype).itemsize + scales + bits

    def fields(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> list[pa.Field]:
        """The Arrow fields for tensors of `shape` (no batch dimension) and `dtype`, one to three; InputError."""
        if dtype not in ARROW_TYPES:
            raise InputError(f"tensors of {dtype} cannot travel; a cut may carry: {', '.join(sorted(DTYPE_NAMES))}.")
        values = math.prod(shape)
        if not 0 < values <= MAX_VALUES_PER_SAMPLE or any(size < 1 for size in shape):
            raise InputError(
                f"a tensor of shape {tuple(shape)} per sample cannot travel: it must hold 1 to 2^31 values."
            )
        stored = self.stored(dtype)
        if self.is_packed(dtype):
            return _packed_fields(name, shape, dtype)
        found = [_field(name, shape, dtype, stored)]
        if self.is_scaled(dtype):
            narrow = scale_shape(shape)
            found += [
                _field(name + suffix, narrow, torch.float32, torch.float32) for suffix in (SCALE_SUFFIX, OFFSET_SUFFIX)
            ]
        return found

    def encode(self, tensor: torch.Tensor) -> list[pa.ExtensionArray]:
        """A CPU tensor (n, *shape) as Arrow arrays of n rows, in the order of `fields`.

        No copy if the tensor is contiguous and the codec keeps its dtype and does not pack it, one copy else: so the
        tensor must not be written to until the arrays have been used.
        """
        if tensor.device.type != "cpu":
            raise InputError(
                f"only tensors in host memory can be encoded, this one is on {tensor.device}. Move it first."
            )
        fields = self.fields("features", tuple(tensor.shape[1:]), tensor.dtype)
        tensor = tensor.detach()
        if self.is_packed(tensor.dtype):
            return _packed_arrays(fields, tensor)
        stored = quantise(tensor) if self.is_scaled(tensor.dtype) else (tensor.to(self.stored(tensor.dtype)),)
        return [_array(field, values) for field, values in zip(fields, stored, strict=True)]


CODECS = {
    codec.name: codec
    for codec in (
        Codec("float32"),
        Codec("float16", torch.float16),
        Codec("bfloat16", torch.bfloat16),
        Codec("int8", torch.uint8),
    )
}
"""By name. `float32` is the exact codec: it keeps every tensor's own dtype, whatever that is."""


def get_codec(name: str, compression: str = "none") -> Codec:
    """The codec called `name`, as it writes for that compression; InputError lists those there are."""
    if name not in CODECS:
        raise InputError(f"unknown codec {name!r}; there are: {', '.join(sorted(CODECS))}.")
    return replace(CODECS[name], packs=compression == PACKED)


def _field(name: str, shape: Sequence[int], dtype: torch.dtype, stored: torch.dtype) -> pa.Field:
    metadata = {DTYPE_KEY: _name(dtype), STORED_KEY: _name(stored)}
    return pa.field(name, pa.fixed_shape_tensor(ARROW_TYPES[stored], tuple(shape)), False, metadata)


def _packed_fields(name: str, shape: Sequence[int], dtype: torch.dtype) -> list[pa.Field]:
    said = {DTYPE_KEY: _name(dtype), STORED_KEY: PACKED}
    bitmap = pa.fixed_shape_tensor(pa.uint8(), (bitmap_bytes(math.prod(shape)),))
    return [
        pa.field(name + NONZERO_SUFFIX, bitmap, False, {**said, SHAPE_KEY: ",".join(map(str, shape))}),
        pa.field(name + VALUES_SUFFIX, PACKED_VALUES, False, said),
    ]


def _packed_arrays(fields: Sequence[pa.Field], tensor: torch.Tensor) -> list[pa.Array]:
    packed = pack(tensor.contiguous().numpy().view(np.uint32).reshape(len(tensor), math.prod(tensor.shape[1:])))
    parts = [pa.array(part) for part in (packed.exponent, packed.high, packed.low)]
    values = pa.StructArray.from_arrays(parts, fields=list(PACKED_VALUE))
    lists = pa.Array.from_buffers(
        PACKED_VALUES, len(tensor), [None, pa.py_buffer(packed.ends)], children=[values], null_count=0
    )
    return [_array(fields[0], torch.from_numpy(packed.nonzero)), lists]


def _array(field: pa.Field, tensor: torch.Tensor) -> pa.ExtensionArray:
    flat = tensor.contiguous().view(-1)
    flat = flat.view(_CARRIERS.get(tensor.dtype, tensor.dtype))
    values = pa.Array.from_buffers(ARROW_TYPES[tensor.dtype], flat.numel(), [None, pa.py_buffer(flat.numpy())])
    lists = pa.FixedSizeListArray.from_arrays(values, math.prod(tensor.shape[1:]))
    return pa.ExtensionArray.from_storage(field.type, lists)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
