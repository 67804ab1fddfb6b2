"""The answer of one request in pieces that are worth a send: about one frame each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hapi.data import Manifest
from hapi.model import Cut
from hapi.plan import INPUT
from hapi.wire.codecs import get_codec
from hapi.wire.stream import NO_LABEL, FeatureBatch, StreamEncoder


class FrameWriter:
    """Takes rows, and gives them back encoded as an Arrow IPC stream, about `frame_bytes` at a time.

    Rows are encoded only when they are taken, so that a large batch is not in memory twice.
    """

    def __init__(self, manifest: Manifest, cut: Cut | None, codec: str, compression: str, frame_bytes: int) -> None:
        self._manifest = manifest
        self._shapes = cut.shapes if cut else ()
        self._dtypes = cut.dtypes if cut else ()
        self._frame_bytes = frame_bytes
        self._encoder = StreamEncoder(self._shapes, self._dtypes, codec, compression, cut=cut.name if cut else INPUT)
        self._row_bytes = sum(
            get_codec(codec).bytes_per_row(shape, dtype)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        self._header = self._encoder.header()
        self._features: deque[tuple[Sequence[int], tuple[torch.Tensor, ...]]] = deque()
        self._single: deque[tuple[int, bytes, str | None]] = deque()
        self._bytes = 0

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._features or self._single)

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a frame."""
        return self._bytes >= self._frame_bytes

    def add_features(self, indices: Sequence[int], tensors: tuple[torch.Tensor, ...]) -> None:
        """Rows of the cut's tensors (n, *shape)."""
        self._features.append((indices, tensors))
        self._bytes += len(indices) * self._row_bytes

    def add_object(self, index: int, data: bytes) -> None:
        """A row of cut `input`."""
        self._single.append((index, data, None))
        self._bytes += len(data)

    def add_failed(self, index: int, reason: str) -> None:
        """A row of a sample that could not be had."""
        self._single.append((index, b"", reason))
        self._bytes += self._row_bytes + len(reason)

    def take(self) -> tuple[bytes, list[int]]:
        """About a frame of what there is, and the indices of the rows in it; the first one begins with the header."""
        parts: list[Any] = [self._header]
        self._header = b""
        done: list[int] = []
        size = 0
        while self.has_rows and size < self._frame_bytes:
            indices, data = self._take_features(size) if self._features else self._take_single()
            done += indices
            parts += data
            size += sum(map(len, data))
        self._bytes = max(0, self._bytes - size) if self.has_rows else 0
        return b"".join(parts), done

    def end(self) -> bytes:
        """The end marker."""
        return self._encoder.end()

    def _take_features(self, used: int) -> tuple[Sequence[int], list[Any]]:
        """As many rows of the first piece as a frame still has room for, one at least."""
        indices, tensors = self._features.popleft()
        rows = max(1, (self._frame_bytes - used) // max(1, self._row_bytes))
        if rows < len(indices):
            self._features.appendleft((indices[rows:], tuple(tensor[rows:] for tensor in tensors)))
        now = indices[:rows]
        return now, self._encode(now, tuple(tensor[:rows] for tensor in tensors))

    def _take_single(self) -> tuple[Sequence[int], list[Any]]:
        """Objects, or failed samples with zeros for features, about a frame of them in one message."""
        held: list[tuple[int, bytes, str | None]] = []
        size = 0
        while self._single and size < self._frame_bytes:
            held.append(self._single.popleft())
            size += len(held[-1][1]) + self._row_bytes
        errors = {row: reason for row, (_, _, reason) in enumerate(held) if reason is not None}
        zeros = tuple(
            torch.zeros((len(held), *shape), dtype=dtype)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        indices = [index for index, _, _ in held]
        return indices, self._encode(indices, zeros, None if self._shapes else [data for _, data, _ in held], errors)

    def _encode(
        self,
        indices: Sequence[int],
        tensors: tuple[torch.Tensor, ...],
        objects: list[bytes] | None = None,
        errors: dict[int, str] | None = None,
    ) -> list[Any]:
        labels = [self._manifest.sample(index).label for index in indices]
        return self._encoder.encode_parts(
            FeatureBatch(
                indices=np.asarray(indices, np.int64),
                labels=np.asarray([NO_LABEL if label is None else label for label in labels], np.int64),
                tensors=tensors,
                objects=objects,
                errors=errors or {},
            )
        )
