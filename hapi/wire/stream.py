"""A feature stream: one Arrow IPC stream with the answer to one extract request.

Columns: `index` int64; `label` int64, null if the sample has none; `features`, `features_1`, ... one fixed-shape tensor
per tensor of the cut (or `object`, the stored bytes, at cut `input`; with codec `int8` each tensor is followed by its
`_scale` and `_offset`, see `quantised`, and with compression `packed` a float32 one is in two columns, `_nonzero` and
`_values`, see `packed`); `error` string, null unless this sample failed, in which case its row of features is zeros (or
no bytes). At cut `input` with compression `trimmed`, `window` follows `object`: four int32 that say where in its
picture the part lies that is sent (left, top, width and height of the whole), zeros where the object is as it is
stored. The schema's metadata names protocol, codec and cut.
`pyarrow.ipc.open_stream` reads it; `reader` in addition notices truncation and bounds memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, TRIMMED
from hapi.wire.codecs import PACKED, get_codec
from hapi.wire.framing import END_OF_STREAM
from hapi.wire.work import Work

PROTOCOL = "1"
INDEX, LABEL, FEATURES, OBJECT, WINDOW, ERROR = "index", "label", "features", "object", "window", "error"
NO_LABEL = -1
ARROW_COMPRESSION = {"none": None, "lz4": "lz4", "zstd": "zstd", PACKED: "zstd"}
"""Compression -> that of Arrow's buffers. `packed` takes float32 tensors apart before, others travel as with `zstd`."""
COMPRESSIONS = tuple(ARROW_COMPRESSION)
WINDOWS = pa.list_(pa.int32(), 4)
MESSAGE_BYTES = 64 * 2**20
"""The encoder divides larger batches into messages of about this size, to keep either side's memory small."""


@dataclass
class FeatureBatch:
    """Some samples of an answer, n rows. Either `tensors` or (at cut `input`) `objects` is filled.

    Attributes:
        indices: int64 (n,), positions in the manifest.
        labels: int64 (n,), -1 where the sample has none.
        tensors: one tensor (n, *shape) per tensor that the cut carries; rows of failed samples are zeros.
        objects: n byte strings, the stored objects.
        windows: int32 (n, 4), where in its picture each object lies, zeros if it is whole; None if none is a part.
        errors: row -> why that sample failed.
        work: what the server says of the work behind it, if it does.
    """

    indices: np.ndarray
    labels: np.ndarray
    tensors: tuple[torch.Tensor, ...] = ()
    objects: list[bytes] | None = None
    windows: np.ndarray | None = None
    errors: dict[int, str] = field(default_factory=dict)
    work: Work | None = None

    def __len__(self) -> int:
        return len(self.indices)


class StreamEncoder:
    """Writes one stream: `header()`, then `encode(batch)` for each batch, then `end()`; each answers bytes to send.

    Args:
        shapes: per tensor of the cut, its shape without the batch dimension; empty for cut `input`.
        dtypes: per tensor of the cut, its dtype.
        codec: `float32` (exact), `float16`, `bfloat16` or `int8`.
        compression: `none`, `lz4`, `zstd` or `packed`, none of which changes what is read. Stored objects are never
            compressed again: for them only `trimmed` makes a difference, to what is announced.
        cut: name of the cut; `input` makes a stream of stored objects.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]] = (),
        dtypes: Sequence[torch.dtype] = (),
        codec: str = "float32",
        compression: str = "none",
        *,
        cut: str = OUTPUT,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._is_trimmed = cut == INPUT and compression == TRIMMED
        if compression not in COMPRESSIONS and not self._is_trimmed:
            raise InputError(f"unknown compression {compression!r}; there are: {', '.join(COMPRESSIONS)}.")
        if (cut == INPUT) != (not shapes) or len(shapes) != len(dtypes):
            raise InputError(
                f"cut {cut!r}: got {len(shapes)} shapes and {len(dtypes)} dtypes of the tensors it carries."
            )
        self._codec = get_codec(codec, compression)
        self._expected = [(tuple(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        payload = [pa.field(OBJECT, pa.large_binary(), False)] if cut == INPUT else []
        if self._is_trimmed:
            payload.append(pa.field(WINDOW, WINDOWS, False))
        for position, (shape, dtype) in enumerate(self._expected):
            payload += self._codec.fields(tensor_column(position), shape, dtype)
        self._schema = pa.schema(
            [pa.field(INDEX, pa.int64(), False), pa.field(LABEL, pa.int64()), *payload, pa.field(ERROR, pa.string())],
            {"hapi.protocol": PROTOCOL, "hapi.codec": codec, "hapi.cut": cut},
        )
        self._message_bytes = message_bytes
        self._sink = _Sink()
        kind = None if cut == INPUT else ARROW_COMPRESSION[compression]
        self._writer = pa.ipc.new_stream(self._sink, self._schema, options=pa.ipc.IpcWriteOptions(compression=kind))
        # Arrow writes the schema together with the first batch; an empty batch brings it out, and header() sends it
        self._writer.write_batch(pa.RecordBatch.from_pylist([], schema=self._schema))
        self._sink.take()

    def header(self) -> bytes:
        """The schema message, to be sent first."""
        return self._schema.serialize().to_pybytes()

    def encode(self, batch: FeatureBatch) -> bytes:
        """The messages of one batch, one copy of its tensors; InputError if they are not what the stream announced."""
        return b"".join(self.encode_parts(batch))

    def encode_parts(self, batch: FeatureBatch) -> list[Any]:
        """`encode` without the copy: buffers to be sent one after the other, some of them the tensors' own memory."""
        arrays = self._payload(batch)
        labels = pa.array(batch.labels, pa.int64(), mask=np.asarray(batch.labels) == NO_LABEL)
        errors = [batch.errors.get(row) for row in range(len(batch))]
        columns = [pa.array(batch.indices, pa.int64()), labels, *arrays, pa.array(errors, pa.string())]
        record = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        size = max(record.nbytes, sum(tensor.nbytes for tensor in batch.tensors))  # here, and where it is read
        rows = max(1, self._message_bytes * max(1, len(batch)) // max(1, size))
        try:
            said = batch.work.metadata() if batch.work is not None else None
            for start in range(0, len(batch), rows):
                self._writer.write_batch(record.slice(start, rows), custom_metadata=said)
                said = None  # it is of the whole batch, and told once
        except BaseException:
            self._sink.take()  # memory ran out half-way: whoever tries again begins with a clean message
            raise
        return self._sink.take()

    def end(self) -> bytes:
        """The end-of-stream marker; a stream without it counts as truncated."""
        self._writer.close()
        self._sink.take()
        return END_OF_STREAM

    def _payload(self, batch: FeatureBatch) -> list[pa.Array]:
        rows = len(batch)
        if len(batch.labels) != rows or any(not 0 <= row < rows for row in batch.errors):
            raise InputError(
                f"a batch of {rows} rows has {len(batch.labels)} labels and errors at {list(batch.errors)}."
            )
        if not self._expected:
            if batch.objects is None or len(batch.objects) != rows:
                raise InputError(f"a batch of {rows} rows at cut 'input' needs as many objects.")
            windows = np.zeros((rows, 4), np.int32) if batch.windows is None else batch.windows
            if windows.shape != (rows, 4):
                raise InputError(f"a batch of {rows} rows has windows of shape {windows.shape}.")
            return [_joined(batch.objects), *([_windows(windows)] if self._is_trimmed else [])]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in batch.tensors]
        wanted = [((rows, *shape), dtype) for shape, dtype in self._expected]
        if found != wanted:
            raise InputError(f"a batch carries tensors {found}, the stream announced {wanted}.")
        return [array for tensor in batch.tensors for array in self._codec.encode(tensor)]


def _joined(objects: Sequence[bytes]) -> pa.Array:
    """The objects as a column, copied once: Arrow's own conversion grows its buffer and copies what is there again."""
    ends = np.cumsum([0, *map(len, objects)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(objects))]
    return pa.Array.from_buffers(pa.large_binary(), len(objects), buffers)


def _windows(windows: np.ndarray) -> pa.Array:
    values = pa.array(np.ascontiguousarray(windows, np.int32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, type=WINDOWS)


def tensor_column(position: int) -> str:
    """Name of the column with the cut's tensor number `position`."""
    return FEATURES if position == 0 else f"{FEATURES}_{position}"


class _Sink:
    """A file for Arrow's writer that keeps what is written, without copying, until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def write(self, part: Any) -> int:
        self._parts.append(part)
        return len(part)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to close."""

    def take(self) -> list[Any]:
        parts, self._parts = self._parts, []
        return parts
