"""Reading the tensor columns of a stream that somebody else wrote: what they say is checked, then believed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from hapi.errors import WireError
from hapi.wire.codecs import (
    ARROW_TYPES,
    DTYPE_KEY,
    DTYPE_NAMES,
    MAX_DIMENSIONS,
    MAX_VALUES_PER_SAMPLE,
    NONZERO_SUFFIX,
    OFFSET_SUFFIX,
    PACKED,
    PACKED_VALUES,
    SCALE_SUFFIX,
    SHAPE_KEY,
    STORED_KEY,
    VALUES_SUFFIX,
)
from hapi.wire.packed import Packed, bitmap_bytes, unpack
from hapi.wire.quantised import dequantise


@dataclass(frozen=True)
class Column:
    """What the fields of a tensor say: the per-sample shape, the dtype the reader gets, and the one on the wire.

    This is a tensor in one Arrow column. Kinds that take several derive from it: those are called as the tensor, with
    `suffixes`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ("",)

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype

    @classmethod
    def of(cls, *fields: pa.Field) -> Column:
        """Reads the column's fields, one per suffix, refusing with WireError what `Codec.fields` never writes."""
        column = cls._of_tensor(*fields)
        if column.is_scaled:
            wanted = " and ".join(column.name + suffix for suffix in (SCALE_SUFFIX, OFFSET_SUFFIX))
            raise WireError(f"feature stream: column {column.name!r} needs the columns {wanted}.")
        return column

    @staticmethod
    def _of_tensor(field: pa.Field) -> Column:
        kind, metadata = field.type, field.metadata or {}
        if not isinstance(kind, pa.FixedShapeTensorType) or kind.permutation not in (None, []):
            raise WireError(f"feature stream: column {field.name!r} is {kind}, not a fixed-shape tensor.")
        shape = _checked_shape(field, kind.shape)
        dtype = DTYPE_NAMES.get(metadata.get(DTYPE_KEY, b"").decode("ascii", "replace"))
        stored = DTYPE_NAMES.get(metadata.get(STORED_KEY, b"").decode("ascii", "replace"))
        if dtype is None or stored is None or ARROW_TYPES[stored] != kind.value_type:
            raise WireError(f"feature stream: column {field.name!r} does not say which dtype its values have.")
        casts = dtype.is_floating_point and (stored.is_floating_point or stored == torch.uint8)
        if stored != dtype and not casts:
            raise WireError(f"feature stream: column {field.name!r} casts {stored} to {dtype}, which no codec does.")
        return Column(field.name, shape, dtype, stored)

    @property
    def is_scaled(self) -> bool:
        """Whether the values are steps, to be read with a scale and an offset."""
        return self.dtype.is_floating_point and not self.stored.is_floating_point

    @property
    def bytes_per_row(self) -> int:
        """Of one sample's tensor in memory, after decoding."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def width(self) -> int:
        """Arrow columns that it takes."""
        return len(self.suffixes)

    def decode(self, *arrays: pa.Array) -> torch.Tensor:
        """The tensor (n, *shape), from its arrays. It shares their memory if nothing had to be done to them."""
        return self._stored_values(arrays[0]).to(self.dtype)

    def _stored_values(self, array: pa.ExtensionArray) -> torch.Tensor:
        _check_nulls(array, array.storage.values)
        if len(array) == 0:
            return torch.empty((0, *self.shape), dtype=self.stored)
        # DLPack and not torch.from_numpy: that would warn of memory that Arrow marks read-only, but which is ours alone
        flat = torch.from_dlpack(array.storage.flatten())
        return flat.view(self.stored).view(len(array), *self.shape)


@dataclass(frozen=True)
class ScaledColumn(Column):
    """A tensor in steps (see `quantised`), with the columns of its scale and offset."""

    suffixes = ("", SCALE_SUFFIX, OFFSET_SUFFIX)

    scaled_by: tuple[Column, Column]

    @classmethod
    def of(cls, *fields: pa.Field) -> Column:
        column = cls._of_tensor(fields[0])
        scale, offset = (Column.of(field) for field in fields[1:])
        for other in (scale, offset):
            fits = len(other.shape) == len(column.shape) and all(
                size in (1, whole) for size, whole in zip(other.shape, column.shape, strict=True)
            )
            if not column.is_scaled or not fits or other.dtype != torch.float32 or other.shape != scale.shape:
                raise WireError(
                    f"feature stream: {other.name!r} is {other.dtype} {other.shape}, which does not scale "
                    f"{column.name!r}, {column.stored} {column.shape}."
                )
        return cls(column.name, column.shape, column.dtype, column.stored, (scale, offset))

    def decode(self, *arrays: pa.Array) -> torch.Tensor:
        scale, offset = (column.decode(array) for column, array in zip(self.scaled_by, arrays[1:], strict=True))
        return dequantise(self._stored_values(arrays[0]), scale, offset, self.dtype)


@dataclass(frozen=True)
class PackedColumn(Column):
    """A float32 tensor in parts (see `packed`), with the column of its bitmap; that is not read for itself."""

    suffixes = (NONZERO_SUFFIX, VALUES_SUFFIX)

    nonzero: Column

    @classmethod
    def of(cls, *fields: pa.Field) -> Column:
        bitmap, values = fields
        name, metadata = bitmap.name.removesuffix(NONZERO_SUFFIX), bitmap.metadata or {}
        if any((field.metadata or {}).get(STORED_KEY) != PACKED.encode() for field in fields):
            raise WireError(f"feature stream: columns {bitmap.name!r} and {values.name!r} do not say what they store.")
        if metadata.get(DTYPE_KEY) != b"float32" or values.type != PACKED_VALUES:
            raise WireError(f"feature stream: column {values.name!r} is {values.type}, not parts of float32 values.")
        said = metadata.get(SHAPE_KEY)
        if said is None or not _SHAPE.fullmatch(said):
            raise WireError(f"feature stream: column {bitmap.name!r} does not say the shape of its tensor.")
        shape = _checked_shape(bitmap, [int(size) for size in said.split(b",") if size])
        width = bitmap_bytes(math.prod(shape))
        if bitmap.type != pa.fixed_shape_tensor(pa.uint8(), (width,)):
            raise WireError(f"feature stream: column {bitmap.name!r} is {bitmap.type}, no bitmap of {shape} values.")
        nonzero = Column(bitmap.name, (width,), torch.uint8, torch.uint8)
        return cls(name, shape, torch.float32, torch.float32, nonzero)

    def decode(self, *arrays: pa.Array) -> torch.Tensor:
        bitmap, lists = arrays
        if len(lists) == 0:
            return torch.empty((0, *self.shape))
        values = lists.flatten()
        parts = [values.field(position) for position in range(values.type.num_fields)]
        _check_nulls(lists, values, *parts)
        nonzero, ends = self.nonzero.decode(bitmap).numpy(), lists.offsets.to_numpy()
        packed = Packed(nonzero, ends - ends[:1], *(part.to_numpy(zero_copy_only=True) for part in parts))
        bits = unpack(packed, math.prod(self.shape))
        return torch.from_numpy(bits.view(np.float32)).view(len(bits), *self.shape)


_SHAPE = re.compile(rb"(\d{1,10}(,\d{1,10})*)?")
_KINDS: tuple[type[Column], ...] = (ScaledColumn, PackedColumn, Column)


def read_columns(fields: Sequence[pa.Field], names: Sequence[str]) -> tuple[Column, ...]:
    """The tensor columns among `fields`, for tensors called as the first of `names`, in that order; WireError."""
    columns: list[Column] = []
    position = 0
    while position < len(fields):
        name = names[len(columns)]
        for kind in _KINDS:
            own = fields[position : position + len(kind.suffixes)]
            if [field.name for field in own] == [name + suffix for suffix in kind.suffixes]:
                columns.append(kind.of(*own))
                position += len(own)
                break
        else:
            raise WireError(f"feature stream: unexpected columns {[field.name for field in fields]}.")
    return tuple(columns)


def _checked_shape(field: pa.Field, sizes: Sequence[int]) -> tuple[int, ...]:
    """The per-sample shape that a field declares; WireError if no codec writes it."""
    shape = tuple(sizes)
    if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape) or math.prod(shape) > MAX_VALUES_PER_SAMPLE:
        raise WireError(f"feature stream: column {field.name!r} has the impossible shape {shape[:MAX_DIMENSIONS]}.")
    return shape


def _check_nulls(*arrays: Any) -> None:
    if any(array.null_count for array in arrays):
        raise WireError("feature stream: a tensor column has nulls; failed samples are named by `error` instead.")
