"""Eight bits per value: each row's channels are mapped affinely onto 0 ... 255, with their own scale and offset.

    value = features * scale + offset, broadcast as in NumPy

Scale and offset belong to a row, not to a message, so that what a sample becomes does not depend on its neighbours: an
answer that is asked for again, or kept in a cache, is the same. The offset is the channel's smallest value, which after
a ReLU is zero: then all 256 levels serve the positive values, and zero stays zero exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

LEVELS = 255
"""Steps between a channel's smallest and largest value."""
MIN_VALUES_PER_SCALE = 16
"""A channel with fewer values does not pay for 8 bytes of scale and offset: the whole row then shares one pair."""
BLOCK_BYTES = 2**20
"""Rows are worked on in blocks that stay in the processor's cache: quantising passes over its input several times."""


def scale_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape per sample of scale and offset, which broadcasts against `shape`.

    Channels are the first dimension of (C, H, W) and of anything with more dimensions, and the last of tokens (N, C).
    A vector, and a tensor whose channels are tiny, has one scale.
    """
    dims = len(shape)
    channel = {0: None, 1: None, 2: 1}.get(dims, 0)
    if channel is None or math.prod(shape) // shape[channel] < MIN_VALUES_PER_SCALE:
        return (1,) * dims
    return tuple(size if dim == channel else 1 for dim, size in enumerate(shape))


def quantise(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(features uint8 (n, *shape), scale, offset: float32 (n, *scale_shape(shape))) of floating-point (n, *shape).

    What is read back differs by at most half a scale, (largest - smallest) / 510, plus float32's rounding. A channel of
    equal values is exact. A channel with a NaN, an infinity, or a range beyond float32's is read back as NaN
    altogether: numbers that are wrong must not look right.
    """
    rows, shape = len(tensor), tuple(tensor.shape[1:])
    narrow = scale_shape(shape)
    values = torch.empty((rows, *shape), dtype=torch.uint8)
    scale, offset = torch.empty((rows, *narrow)), torch.empty((rows, *narrow))
    block = max(1, BLOCK_BYTES // max(1, 4 * math.prod(shape)))
    for start in range(0, rows, block):
        part = slice(start, start + block)
        _quantise_block(tensor[part].detach().float(), values[part], scale[part], offset[part])
    return values, scale, offset


def dequantise(values: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that `quantise` was given, nearly."""
    return values.float().mul_(scale).add_(offset).to(dtype)


def _quantise_block(block: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> None:
    """Fills `values`, `scale` and `offset` for a few rows."""
    over = [dim for dim in range(1, block.ndim) if scale.shape[dim] == 1]
    low = block.amin(over, keepdim=True) if over else block
    high = block.amax(over, keepdim=True) if over else block
    hopeless = ~torch.isfinite((high - low) * (1 + 1e-6))  # room for what reading back rounds up
    if hopeless.any():
        block = torch.where(hopeless, torch.zeros(()), block)
        low = torch.where(hopeless, torch.full((), torch.nan), low)
        high = torch.where(hopeless, torch.zeros(()), high)
    step = (high - low) / LEVELS
    scale.copy_(step)
    offset.copy_(low)
    # a channel of equal values has step 0, one that is hopeless has NaN: any divisor does
    usable = torch.where(step > 0, step, torch.ones(()))
    steps = torch.sub(block, low.nan_to_num(nan=0.0)).div_(usable).round_().clamp_(0, LEVELS)
    values.copy_(steps)
