"""Shapes as the graph knows them: sizes that are affine in the batch, and what a tensor weighs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """A size that may grow with the batch: `per_sample * batch + fixed`."""

    per_sample: int
    fixed: int = 0

    def at(self, batch: int) -> int:
        return self.per_sample * batch + self.fixed


BATCH = Size(1)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One sample of a batched tensor: its shape without the batch dimension, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"(B{''.join(f', {size}' for size in self.shape)}) {dtype_name(self.dtype)}"


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """What is known of one value of a graph before anything runs.

    `order` is the order of its dimensions in memory when that is not the usual one (a convolution after a permute
    works on channels-last data), else None. `base` names the value whose storage it shares: itself when it owns its
    memory, another value when it is a view, None when it is a view of a weight.
    """

    sizes: tuple[Size, ...]
    dtype: torch.dtype
    order: tuple[int, ...] | None = None
    base: str | None = None

    def shape(self, batch: int) -> tuple[int, ...]:
        return tuple(size.at(batch) for size in self.sizes)

    def bytes(self, batch: int) -> int:
        """Bytes of the value for a batch, views counted as if they were copies."""
        return prod(self.shape(batch)) * self.dtype.itemsize

    @property
    def bytes_per_sample(self) -> int:
        """What one more sample adds, in bytes."""
        return self.bytes(2) - self.bytes(1)

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension is the batch and no other depends on it."""
        return bool(self.sizes) and self.sizes[0] == BATCH and all(size.per_sample == 0 for size in self.sizes[1:])

    @property
    def per_sample(self) -> TensorSpec:
        """The spec of one sample; only for batched values."""
        return TensorSpec(tuple(size.fixed for size in self.sizes[1:]), self.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")


def memory_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The order of a dense tensor's dimensions in memory, outermost first; None when contiguous or not dense."""
    if tensor.is_contiguous():
        return None
    order = tuple(sorted(range(tensor.dim()), key=lambda dim: -tensor.stride()[dim]))
    return order if tensor.permute(order).is_contiguous() else None


def in_order(tensor: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    """The same tensor laid out in memory by `order` (None: contiguous); no copy when it already is."""
    if order is None:
        return tensor.contiguous()
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(inverse)
