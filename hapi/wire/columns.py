"""Reading the tensor columns of a stream that somebody else wrote: what they say is checked, then believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from hapi.errors import WireError
from hapi.wire.codecs import (
    ARROW_TYPES,
    DTYPE_KEY,
    DTYPE_NAMES,
    MAX_DIMENSIONS,
    MAX_VALUES_PER_SAMPLE,
    OFFSET_SUFFIX,
    SCALE_SUFFIX,
    STORED_KEY,
)
from hapi.wire.quantised import dequantise


@dataclass(frozen=True)
class Column:
    """What a tensor column's field says: the per-sample shape, the dtype the reader gets, and the one on the wire.

    A column of steps (see `quantised`) knows the columns of its scale and offset; those are not read for themselves.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype
    scaled_by: tuple[Column, ...] = ()

    @classmethod
    def of(cls, *fields: pa.Field) -> Column:
        """Reads one column's field, or its fields if it is scaled, refusing what `Codec.fields` never writes."""
        column, *scales = [cls._of_one(field) for field in fields]
        if not column.is_scaled:
            return column
        wanted = [column.name + SCALE_SUFFIX, column.name + OFFSET_SUFFIX]
        if [scale.name for scale in scales] != wanted or any(scale.is_scaled for scale in scales):
            raise WireError(f"feature stream: column {column.name!r} needs the columns {' and '.join(wanted)}.")
        for scale in scales:
            fits = len(scale.shape) == len(column.shape) and all(
                size in (1, whole) for size, whole in zip(scale.shape, column.shape, strict=True)
            )
            if not fits or scale.dtype != torch.float32 or scale.shape != scales[0].shape:
                raise WireError(
                    f"feature stream: {scale.name!r} is {scale.dtype} {scale.shape}, which does not scale "
                    f"{column.name!r} {column.shape}."
                )
        return cls(column.name, column.shape, column.dtype, column.stored, tuple(scales))

    @classmethod
    def _of_one(cls, field: pa.Field) -> Column:
        kind, metadata = field.type, field.metadata or {}
        if not isinstance(kind, pa.FixedShapeTensorType) or kind.permutation not in (None, []):
            raise WireError(f"feature stream: column {field.name!r} is {kind}, not a fixed-shape tensor.")
        shape = tuple(kind.shape)
        if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape) or math.prod(shape) > MAX_VALUES_PER_SAMPLE:
            raise WireError(f"feature stream: column {field.name!r} has the impossible shape {shape}.")
        dtype = DTYPE_NAMES.get(metadata.get(DTYPE_KEY, b"").decode("ascii", "replace"))
        stored = DTYPE_NAMES.get(metadata.get(STORED_KEY, b"").decode("ascii", "replace"))
        if dtype is None or stored is None or ARROW_TYPES[stored] != kind.value_type:
            raise WireError(f"feature stream: column {field.name!r} does not say which dtype its values have.")
        casts = dtype.is_floating_point and (stored.is_floating_point or stored == torch.uint8)
        if stored != dtype and not casts:
            raise WireError(f"feature stream: column {field.name!r} casts {stored} to {dtype}, which no codec does.")
        return cls(field.name, shape, dtype, stored)

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
        return 1 + len(self.scaled_by)

    def decode(self, *arrays: pa.ExtensionArray) -> torch.Tensor:
        """The tensor (n, *shape), from its arrays. It shares their memory if nothing had to be cast."""
        first, *others = arrays
        values = self._stored_values(first)
        if self.scaled_by:
            scale, offset = (column.decode(array) for column, array in zip(self.scaled_by, others, strict=True))
            return dequantise(values, scale, offset, self.dtype)
        return values.to(self.dtype)

    def _stored_values(self, array: pa.ExtensionArray) -> torch.Tensor:
        if array.null_count or array.storage.values.null_count:
            raise WireError("feature stream: a tensor column has nulls; failed samples are named by `error` instead.")
        if len(array) == 0:
            return torch.empty((0, *self.shape), dtype=self.stored)
        # DLPack and not torch.from_numpy: that would warn of memory that Arrow marks read-only, but which is ours alone
        flat = torch.from_dlpack(array.storage.flatten())
        return flat.view(self.stored).view(len(array), *self.shape)


def read_columns(fields: Sequence[pa.Field], names: Sequence[str]) -> tuple[Column, ...]:
    """The tensor columns among `fields`, which must be called as the first of `names`, in that order; WireError."""
    columns: list[Column] = []
    position = 0
    while position < len(fields):
        name = names[len(columns)]
        if fields[position].name != name:
            raise WireError(f"feature stream: unexpected columns {[field.name for field in fields]}.")
        scales = [
            f for f in fields[position + 1 : position + 3] if f.name in (name + SCALE_SUFFIX, name + OFFSET_SUFFIX)
        ]
        columns.append(Column.of(fields[position], *scales))
        position += columns[-1].width
    return tuple(columns)
