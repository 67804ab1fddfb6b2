"""The answer of one request in pieces that are worth a send: about one frame each, encoded as rows come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hapi.data import Manifest
from hapi.model import Cut
from hapi.plan import INPUT
from hapi.wire.codecs import get_codec
from hapi.wire.stream import NO_LABEL, FeatureBatch, StreamEncoder


class FrameWriter:
    """Encodes rows into an Arrow IPC stream and hands it out in pieces of about `frame_bytes`.

    Rows of features are encoded when they are added; stored objects and failed samples are gathered first, so that
    small ones share a message.
    """

    def __init__(self, manifest: Manifest, cut: Cut | None, codec: str, compression: str, frame_bytes: int) -> None:
        self._manifest = manifest
        self._shapes = cut.shapes if cut else ()
        self._dtypes = cut.dtypes if cut else ()
        self._frame_bytes = frame_bytes
        self._encoder = StreamEncoder(
            self._shapes,
            self._dtypes,
            codec,
            compression,
            cut=cut.name if cut else INPUT,
        )
        self._row_bytes = sum(
            int(np.prod(shape)) * get_codec(codec).bytes_per_value(dtype)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        self._parts: list[bytes] = [self._encoder.header()]
        self._size = 0
        self._held: list[tuple[int, bytes, str | None]] = []
        self._held_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a frame."""
        return self._size + self._held_bytes >= self._frame_bytes

    def add_features(self, indices: Sequence[int], tensors: tuple[torch.Tensor, ...]) -> None:
        """Rows of the cut's tensors (n, *shape), in messages of about a frame each."""
        rows = max(1, self._frame_bytes // max(1, self._row_bytes))
        for start in range(0, len(indices), rows):
            part = indices[start : start + rows]
            self._encode(part, tuple(tensor[start : start + rows] for tensor in tensors))

    def add_object(self, index: int, data: bytes) -> None:
        """A row of cut `input`."""
        self._hold(index, data, None)

    def add_failed(self, index: int, reason: str) -> None:
        """A row of a sample that could not be had."""
        self._hold(index, b"", reason)

    def take(self) -> bytes:
        """What there is to send, empty while no row has been added."""
        self._flush()
        if not self._size:
            return b""
        data, self._parts, self._size = b"".join(self._parts), [], 0
        return data

    def end(self) -> bytes:
        """The rest, with the end marker."""
        return self.take() + self._encoder.end()

    def _hold(self, index: int, data: bytes, reason: str | None) -> None:
        self._held.append((index, data, reason))
        self._held_bytes += len(data) + len(reason or "") + self._row_bytes
        if self._held_bytes >= self._frame_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        held, self._held, self._held_bytes = self._held, [], 0
        indices = [index for index, _, _ in held]
        errors = {row: reason for row, (_, _, reason) in enumerate(held) if reason is not None}
        zeros = tuple(
            torch.zeros((len(held), *shape), dtype=dtype)
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        )
        self._encode(indices, zeros, None if self._shapes else [data for _, data, _ in held], errors)

    def _encode(
        self,
        indices: Sequence[int],
        tensors: tuple[torch.Tensor, ...],
        objects: list[bytes] | None = None,
        errors: dict[int, str] | None = None,
    ) -> None:
        labels = [self._manifest.sample(index).label for index in indices]
        data = self._encoder.encode(
            FeatureBatch(
                indices=np.asarray(indices, np.int64),
                labels=np.asarray([NO_LABEL if label is None else label for label in labels], np.int64),
                tensors=tensors,
                objects=objects,
                errors=errors or {},
            )
        )
        self._parts.append(data)
        self._size += len(data)
