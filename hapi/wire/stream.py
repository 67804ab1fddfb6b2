"""A feature stream: one Arrow IPC stream with the answer to one extract request.

Columns: `index` int64; `label` int64, null if the sample has none; `features`, `features_1`, ... one fixed-shape tensor
per tensor of the cut (or `object`, the stored bytes, at cut `input`); `error` string, null unless this sample failed,
in which case its row of features is zeros (or no bytes). The schema's metadata names protocol, codec and cut.
`pyarrow.ipc.open_stream` reads it; this reader in addition notices truncation and bounds memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from hapi.errors import InputError, WireError
from hapi.plan import INPUT, OUTPUT
from hapi.wire.codecs import Column, get_codec
from hapi.wire.framing import END_OF_STREAM, Frames, StreamLimits, check_buffers

PROTOCOL = "1"
INDEX, LABEL, FEATURES, OBJECT, ERROR = "index", "label", "features", "object", "error"
NO_LABEL = -1
_T = TypeVar("_T")
COMPRESSIONS = ("none", "lz4", "zstd")
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
        errors: row -> why that sample failed.
    """

    indices: np.ndarray
    labels: np.ndarray
    tensors: tuple[torch.Tensor, ...] = ()
    objects: list[bytes] | None = None
    errors: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class StreamHeader:
    """What the first message of a stream says about the rest."""

    cut: str
    codec: str
    columns: tuple[Column, ...]


class StreamEncoder:
    """Writes one stream: `header()`, then `encode(batch)` for each batch, then `end()`; each answers bytes to send.

    Args:
        shapes: per tensor of the cut, its shape without the batch dimension; empty for cut `input`.
        dtypes: per tensor of the cut, its dtype.
        codec: `float32` (exact), `float16` or `bfloat16`.
        compression: `none`, `lz4` or `zstd`, over Arrow's buffers. Stored objects are never compressed again.
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
        if compression not in COMPRESSIONS:
            raise InputError(f"unknown compression {compression!r}; there are: {', '.join(COMPRESSIONS)}.")
        if (cut == INPUT) != (not shapes) or len(shapes) != len(dtypes):
            raise InputError(
                f"cut {cut!r}: got {len(shapes)} shapes and {len(dtypes)} dtypes of the tensors it carries."
            )
        self._codec = get_codec(codec)
        self._expected = [(tuple(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        payload = [pa.field(OBJECT, pa.large_binary(), False)] if cut == INPUT else []
        payload += [
            self._codec.field(tensor_column(position), shape, dtype)
            for position, (shape, dtype) in enumerate(self._expected)
        ]
        self._schema = pa.schema(
            [pa.field(INDEX, pa.int64(), False), pa.field(LABEL, pa.int64()), *payload, pa.field(ERROR, pa.string())],
            {"hapi.protocol": PROTOCOL, "hapi.codec": codec, "hapi.cut": cut},
        )
        self._message_bytes = message_bytes
        self._sink = _Sink()
        kind = None if compression == "none" or cut == INPUT else compression
        self._writer = pa.ipc.new_stream(self._sink, self._schema, options=pa.ipc.IpcWriteOptions(compression=kind))
        # Arrow writes the schema together with the first batch; an empty batch brings it out, and header() sends it
        self._writer.write_batch(pa.RecordBatch.from_pylist([], schema=self._schema))
        self._sink.take()

    def header(self) -> bytes:
        """The schema message, to be sent first."""
        return self._schema.serialize().to_pybytes()

    def encode(self, batch: FeatureBatch) -> bytes:
        """The messages of one batch, one copy of its tensors; InputError if they are not what the stream announced."""
        arrays = self._payload(batch)
        labels = pa.array(batch.labels, pa.int64(), mask=np.asarray(batch.labels) == NO_LABEL)
        errors = [batch.errors.get(row) for row in range(len(batch))]
        columns = [pa.array(batch.indices, pa.int64()), labels, *arrays, pa.array(errors, pa.string())]
        record = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        rows = max(1, self._message_bytes * max(1, len(batch)) // max(1, record.nbytes))
        for start in range(0, len(batch), rows):
            self._writer.write_batch(record.slice(start, rows))
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
            return [pa.array(batch.objects, pa.large_binary())]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in batch.tensors]
        wanted = [((rows, *shape), dtype) for shape, dtype in self._expected]
        if found != wanted:
            raise InputError(f"a batch carries tensors {found}, the stream announced {wanted}.")
        return [self._codec.encode(tensor) for tensor in batch.tensors]


class StreamDecoder:
    """Reads one stream that arrives in chunks of any size. Does no input or output: it serves threads and asyncio."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.header: StreamHeader | None = None
        self.batches = 0
        self._limits = limits or StreamLimits()
        self._frames = Frames(self._limits)
        self._schema: pa.Schema | None = None

    @property
    def received_bytes(self) -> int:
        return self._frames.received_bytes

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[FeatureBatch]:
        """Yields each batch that `chunk` completes. A generator: run it to its end before the next chunk.

        The tensors are writable and nobody else's. Raises WireError if the bytes are not a feature stream.
        """
        for frame in self._frames.feed(chunk):
            if self._schema is None:
                self._schema, self.header = _parse(_read_schema, frame)
            else:
                check_buffers(frame, self._limits)
                assert self.header is not None
                batch = _parse(partial(_read_batch, schema=self._schema, header=self.header), frame)
                self.batches += 1
                yield batch

    def finish(self) -> None:
        """To be called when there are no more chunks; raises TruncatedStreamError if the end marker is missing."""
        self._frames.finish()


def read_stream(chunks: Iterable[bytes], *, limits: StreamLimits | None = None) -> Iterator[FeatureBatch]:
    """Yields the batches of a stream as its chunks arrive.

    Raises TruncatedStreamError, after the complete batches, if the chunks end before the end marker does; WireError as
    soon as something is not a feature stream, or larger than `limits`.
    """
    decoder = StreamDecoder(limits)
    for chunk in chunks:
        yield from decoder.feed(chunk)
    decoder.finish()


def tensor_column(position: int) -> str:
    """Name of the column with the cut's tensor number `position`."""
    return FEATURES if position == 0 else f"{FEATURES}_{position}"


def _parse(read: Callable[[Any], _T], frame: bytearray) -> _T:
    """What `read` makes of a frame; whatever Arrow finds wrong with it (also text that is not UTF-8) is a WireError."""
    try:
        return read(pa.ipc.read_message(pa.py_buffer(frame)))
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise WireError(f"feature stream: Arrow cannot read a message of {len(frame)} bytes ({error}).") from error


def _read_schema(message: Any) -> tuple[pa.Schema, StreamHeader]:
    schema = pa.ipc.read_schema(message)
    return schema, _read_header(schema)


def _read_batch(message: Any, schema: pa.Schema, header: StreamHeader) -> FeatureBatch:
    record = pa.ipc.read_record_batch(message, schema)
    record.validate(full=True)
    return _to_features(record, header)


def _read_header(schema: pa.Schema) -> StreamHeader:
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    protocol = metadata.get(b"hapi.protocol", b"none").decode("utf-8", "replace")
    if protocol != PROTOCOL:
        raise WireError(
            f"feature stream: protocol {protocol!r}, this reader speaks {PROTOCOL!r}. Update the older side."
        )
    cut = metadata.get(b"hapi.cut", b"").decode("utf-8", "replace")
    payload = [schema.field(position) for position in range(2, len(schema) - 1)]
    frame = [(field.name, field.type) for field in schema if field not in payload]
    if frame != [(INDEX, pa.int64()), (LABEL, pa.int64()), (ERROR, pa.string())] or not payload:
        raise WireError(f"feature stream: unexpected columns {schema.names}.")
    columns: tuple[Column, ...] = ()
    if cut == INPUT:
        if [(field.name, field.type) for field in payload] != [(OBJECT, pa.large_binary())]:
            raise WireError(f"feature stream: cut 'input' must carry one column {OBJECT!r}, found {schema.names}.")
    else:
        if [field.name for field in payload] != [tensor_column(position) for position in range(len(payload))]:
            raise WireError(f"feature stream: unexpected columns {schema.names}.")
        columns = tuple(Column.of(field) for field in payload)
    return StreamHeader(cut, metadata.get(b"hapi.codec", b"").decode("utf-8", "replace"), columns)


def _to_features(record: pa.RecordBatch, header: StreamHeader) -> FeatureBatch:
    if record.column(INDEX).null_count:
        raise WireError("feature stream: a row has no index.")
    errors = record.column(ERROR)
    payload = record.columns[2:-1]
    if not header.columns and payload[0].null_count:
        raise WireError("feature stream: a row has no object.")
    return FeatureBatch(
        indices=record.column(INDEX).to_numpy().copy(),
        labels=record.column(LABEL).fill_null(NO_LABEL).to_numpy().copy(),
        tensors=tuple(column.decode(array) for column, array in zip(header.columns, payload, strict=False)),
        objects=None if header.columns else payload[0].to_pylist(),
        errors={row: reason for row, reason in enumerate(errors.to_pylist()) if reason is not None},
    )


class _Sink:
    """A file for Arrow's writer that keeps what is written, without copying, until `take` joins it."""

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

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data
