"""The answer of one request in pieces that are worth a send: about one frame each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from hapi.data.images import Window
from hapi.model import Cut
from hapi.plan import INPUT
from hapi.wire.codecs import get_codec
from hapi.wire.quantised import BLOCK_BYTES
from hapi.wire.stream import NO_LABEL, FeatureBatch, StreamEncoder
from hapi.wire.work import Work

BLOCKS = 4
"""Blocks of float32 values that `hapi.wire.quantised` and `packed` work with at once."""


_Single = tuple[int, bytes, str | None, Window | None]
"""A row that is encoded by itself: index, stored bytes, why it failed, where in its picture the bytes lie."""


class FrameWriter:
    """Takes rows, and gives them back encoded as an Arrow IPC stream, about `frame_bytes` at a time.

    Rows are encoded only when they are taken, so that they are not in memory twice.
    """

    def __init__(
        self, labels: Mapping[int, int | None], cut: Cut | None, codec: str, compression: str, frame_bytes: int
    ) -> None:
        """`labels` has those of all samples whose rows will be taken, by index."""
        self._labels = labels
        self._shapes = cut.shapes if cut else ()
        self._dtypes = cut.dtypes if cut else ()
        self._frame_bytes = frame_bytes
        self._codec, self._is_compressed = get_codec(codec, compression), compression != "none"
        self._encoder = StreamEncoder(self._shapes, self._dtypes, codec, compression, cut=cut.name if cut else INPUT)
        self._row_bytes = sum(
            self._codec.bytes_per_row(shape, dtype) for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        self._header = self._encoder.header()
        self._features: deque[tuple[int, tuple[torch.Tensor, ...]]] = deque()
        self._single: deque[_Single] = deque()
        self._bytes = 0

    def encode_bytes(self, largest_object: int = 0) -> int:
        """Most bytes that encoding and sending a frame takes beside its rows, whose largest stored object is so large.

        Rows of tensors are stacked, made narrower or taken apart if the codec says so, compressed, joined, and copied
        once more on their way to the socket; objects are copied into Arrow's buffer, joined, and copied once more.
        """
        if not self._shapes:
            return 3 * max(self._frame_bytes, largest_object)
        rows = max(1, self._frame_bytes // max(1, self._row_bytes))
        raw = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(self._shapes, self._dtypes, strict=True)]
        stacked = rows * sum(raw)
        is_rewritten = any(self._codec.stored(dtype) != dtype or self._codec.is_packed(dtype) for dtype in self._dtypes)
        in_blocks = [
            size
            for size, dtype in zip(raw, self._dtypes, strict=True)
            if self._codec.is_scaled(dtype) or self._codec.is_packed(dtype)
        ]
        working = BLOCKS * min(max(BLOCK_BYTES, *in_blocks), rows * max(in_blocks)) if in_blocks else 0
        return stacked + (2 + is_rewritten + self._is_compressed) * rows * self._row_bytes + working

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._features or self._single)

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a frame."""
        return self._bytes >= self._frame_bytes

    def add_features(self, index: int, tensors: tuple[torch.Tensor, ...]) -> None:
        """A row of the cut's tensors, each of its `shape`."""
        self._features.append((index, tensors))
        self._bytes += self._row_bytes

    def add_object(self, index: int, data: bytes, window: Window | None = None) -> None:
        """A row of cut `input`; `window` says where in its picture it lies, if it is a part of one."""
        self._single.append((index, data, None, window))
        self._bytes += len(data)

    def add_failed(self, index: int, reason: str) -> None:
        """A row of a sample that could not be had."""
        self._single.append((index, b"", reason, None))
        self._bytes += self._row_bytes + len(reason)

    def take(self, parts: int = 1, work: Work | None = None) -> tuple[bytes, list[int]]:
        """About a frame (or one of `parts` of it, where memory is short) of what there is, and the indices of its rows.

        `work` is told along with it.
        The first one begins with the header. If memory runs out nothing is lost: it can be called again.
        """
        size = self._frame_bytes // parts
        if self._features:
            rows = list(islice(self._features, max(1, size // max(1, self._row_bytes))))
            indices = [index for index, _ in rows]
            columns = zip(*(tensors for _, tensors in rows), strict=True)
            data = b"".join([self._header, *self._encode(indices, tuple(map(_stacked, columns)), work)])
            taken = len(rows) * self._row_bytes
            self._drop(self._features, len(rows))
        else:
            single = self._single_rows(size)
            indices = [index for index, *_ in single]
            data = b"".join([self._header, *self._encode_single(single, work)])
            taken = sum(len(data) + (self._row_bytes + len(said) if said else 0) for _, data, said, _ in single)
            self._drop(self._single, len(single))
        self._header = b""
        self._bytes -= taken
        return data, indices

    def end(self) -> bytes:
        """The end marker."""
        return self._encoder.end()

    @staticmethod
    def _drop(rows: deque[tuple[int, tuple[torch.Tensor, ...]]] | deque[_Single], n: int) -> None:
        for _ in range(n):
            rows.popleft()

    def _single_rows(self, size: int) -> list[_Single]:
        """The first objects or failed samples, about `size` bytes, one at least."""
        rows: list[_Single] = []
        used = 0
        for row in self._single:
            if rows and used >= size:
                break
            rows.append(row)
            used += len(row[1]) + self._row_bytes
        return rows

    def _encode_single(self, rows: Sequence[_Single], work: Work | None) -> list[Any]:
        """Objects, or failed samples with zeros for features, in one message."""
        errors = {row: reason for row, (_, _, reason, _) in enumerate(rows) if reason is not None}
        zeros = tuple(
            torch.zeros((len(rows), *shape), dtype=dtype)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        indices = [index for index, *_ in rows]
        if self._shapes:
            return self._encode(indices, zeros, work, errors=errors)
        windows = np.array([window or (0, 0, 0, 0) for *_, window in rows], np.int32)
        return self._encode(indices, zeros, work, [data for _, data, _, _ in rows], windows, errors)

    def _encode(
        self,
        indices: Sequence[int],
        tensors: tuple[torch.Tensor, ...],
        work: Work | None,
        objects: list[bytes] | None = None,
        windows: np.ndarray | None = None,
        errors: dict[int, str] | None = None,
    ) -> list[Any]:
        labels = [self._labels[index] for index in indices]
        return self._encoder.encode_parts(
            FeatureBatch(
                indices=np.asarray(indices, np.int64),
                labels=np.asarray([NO_LABEL if label is None else label for label in labels], np.int64),
                tensors=tensors,
                objects=objects,
                windows=windows,
                errors=errors or {},
                work=work,
            )
        )


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """One row needs no copy."""
    return rows[0][None] if len(rows) == 1 else torch.stack(tuple(rows))
