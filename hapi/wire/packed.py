"""Float32 values taken apart so that each part compresses as well as it can, bit for bit.

    nonzero    one bit per value, row by row: 0 for +0.0, which is all that is said of it; first value in the top bit
    exponent   of every other value its eight bits of exponent, of which features have few different ones
    high       of every other value its sign and the upper seven bits of its mantissa
    low        and the lower sixteen, which look like noise

A compressor that counts symbols makes about three bits of an exponent once exponents stand alone, and seven of a
high part where signs are equal. Both ideas are old: bytes that compress go apart from those that look like noise
(ISOBAR, Schendel et al. 2012; for exponents of networks ZipNN, Hershcovitch et al. 2024), and zeros of activations
become a bitmap (zero-value compression, Rhu et al. 2018). A value is told by its pattern of bits: -0.0, subnormal
numbers, infinities and the payloads of NaNs arrive as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hapi.errors import WireError
from hapi.wire.quantised import BLOCK_BYTES

_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)
"""Bits that are set in a byte."""


@dataclass(frozen=True)
class Packed:
    """n rows of float32 values, taken apart.

    Attributes:
        nonzero: uint8 (n, bitmap_bytes(values)); what is left of a row's last byte is 0.
        ends: int64 (n + 1,), ascending from 0: row i has the parts from ends[i] up to ends[i + 1].
        exponent, high, low: uint8, uint8, uint16, each (ends[n],).
    """

    nonzero: np.ndarray
    ends: np.ndarray
    exponent: np.ndarray
    high: np.ndarray
    low: np.ndarray


def bitmap_bytes(values: int) -> int:
    """Bytes with a bit for each of so many values."""
    return -(-values // 8)


def pack(bits: np.ndarray) -> Packed:
    """Takes apart the patterns of float32 values, uint32 (n, values)."""
    rows, values = bits.shape
    nonzero = np.empty((rows, bitmap_bytes(values)), np.uint8)
    for part in _blocks(rows, values):
        nonzero[part] = np.packbits(bits[part] != 0, axis=1)
    ends = _ends(nonzero)
    packed = Packed(nonzero, ends, *(np.empty(ends[-1], kind) for kind in (np.uint8, np.uint8, np.uint16)))
    for part in _blocks(rows, values):
        kept = slice(ends[part.start], ends[part.stop])
        block = bits[part].reshape(-1)
        if kept.stop - kept.start < len(block):
            block = block.take(np.flatnonzero(block != 0))
        halves = block.view(np.uint16)
        upper = halves[1::2]
        packed.exponent[kept] = upper >> 7  # a byte does not hold the sign above it
        packed.high[kept] = (upper >> 8) & 0x80 | upper & 0x7F
        packed.low[kept] = halves[::2]
    return packed


def unpack(packed: Packed, values: int) -> np.ndarray:
    """The patterns of float32 values, uint32 (n, values), that `pack` was given.

    Raises WireError if a row has more or fewer parts than bits that call for them; nothing is allocated before.
    """
    rows = len(packed.nonzero)
    unused = 8 * bitmap_bytes(values) - values
    if rows and (packed.nonzero[:, -1] & ((1 << unused) - 1)).any():
        raise WireError(f"feature stream: a bitmap of {values} values has bits beyond the last of them.")
    wanted, ends = _ends(packed.nonzero), packed.ends
    if not np.array_equal(wanted, ends):
        row = int(np.flatnonzero(np.diff(wanted) != np.diff(ends))[0]) if len(wanted) == len(ends) else rows
        raise WireError(
            f"feature stream: row {row} of a message has another number of packed values than its bitmap calls for."
        )
    bits = np.zeros((rows, values), np.uint32)
    for part in _blocks(rows, values):
        kept = slice(ends[part.start], ends[part.stop])
        block = bits[part].reshape(-1)
        is_full = kept.stop - kept.start == len(block)
        found = block if is_full else np.empty(kept.stop - kept.start, np.uint32)
        halves, high = found.view(np.uint16), packed.high[kept]
        upper = packed.exponent[kept].astype(np.uint16)
        upper <<= 7
        upper |= high & 0x7F
        upper |= (high & 0x80).astype(np.uint16) << 8
        halves[1::2] = upper
        halves[::2] = packed.low[kept]
        if not is_full:
            block[np.flatnonzero(np.unpackbits(packed.nonzero[part], axis=1, count=values).view(np.bool_))] = found
    return bits


def _ends(nonzero: np.ndarray) -> np.ndarray:
    """`Packed.ends`, from the bitmap."""
    ends = np.zeros(len(nonzero) + 1, np.int64)
    np.cumsum(_ONES[nonzero].sum(axis=1, dtype=np.int64), out=ends[1:])
    return ends


def _blocks(rows: int, values: int) -> Iterator[slice]:
    """Rows a few at a time, so that they stay in the processor's cache: both ways pass over them several times."""
    size = max(1, BLOCK_BYTES // (4 * values))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))
