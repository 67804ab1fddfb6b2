"""Reading a feature stream as it arrives: strict, bounded, and never mistaking a broken stream for a whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from hapi.errors import WireError
from hapi.plan import INPUT
from hapi.wire.columns import Column, read_columns
from hapi.wire.framing import Frames, StreamLimits, check_buffers, custom_metadata
from hapi.wire.stream import (
    ERROR,
    INDEX,
    LABEL,
    NO_LABEL,
    OBJECT,
    PROTOCOL,
    WINDOW,
    WINDOWS,
    FeatureBatch,
    tensor_column,
)
from hapi.wire.work import Work

_T = TypeVar("_T")


@dataclass(frozen=True)
class StreamHeader:
    """What the first message of a stream says about the rest."""

    cut: str
    codec: str
    columns: tuple[Column, ...]


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

    @property
    def held_bytes(self) -> int:
        """Bytes of a message that is not complete."""
        return self._frames.held_bytes

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
                read = partial(_read_batch, schema=self._schema, header=self.header, limits=self._limits)
                batch = _parse(read, frame)
                batch.work = Work.of(custom_metadata(frame))
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


def _parse(read: Callable[[Any], _T], frame: bytearray) -> _T:
    """What `read` makes of a frame; whatever Arrow finds wrong with it (also text that is not UTF-8) is a WireError."""
    try:
        return read(pa.ipc.read_message(pa.py_buffer(frame)))
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise WireError(f"feature stream: Arrow cannot read a message of {len(frame)} bytes ({error}).") from error


def _read_schema(message: Any) -> tuple[pa.Schema, StreamHeader]:
    if message.type != "schema":  # Arrow takes any for one: one of an unknown kind, which it did not verify, ended us
        raise WireError(f"feature stream: begins with a message of kind {message.type!r}, not with its schema.")
    schema = pa.ipc.read_schema(message)
    return schema, _read_header(schema)


def _read_batch(message: Any, schema: pa.Schema, header: StreamHeader, limits: StreamLimits) -> FeatureBatch:
    record = pa.ipc.read_record_batch(message, schema)
    if len(record) > limits.rows:
        raise WireError(f"feature stream: a message has {len(record)} rows, over the limit of {limits.rows}.")
    record.validate(full=True)
    decoded = len(record) * sum(column.bytes_per_row for column in header.columns)
    if decoded > limits.body_bytes:
        raise WireError(
            f"feature stream: a message of {len(record)} rows decodes to {decoded} bytes of tensors, over the limit of "
            f"{limits.body_bytes}."
        )
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
        objects = [(OBJECT, pa.large_binary()), (WINDOW, WINDOWS)]
        if [(field.name, field.type) for field in payload] not in (objects[:1], objects):
            raise WireError(f"feature stream: cut 'input' must carry one column {OBJECT!r}, found {schema.names}.")
    else:
        columns = read_columns(payload, [tensor_column(position) for position in range(len(payload))])
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
        tensors=_tensors(header.columns, payload),
        objects=None if header.columns else payload[0].to_pylist(),
        windows=None if header.columns or len(payload) == 1 else _windows(payload[1]),
        errors={row: reason for row, reason in enumerate(errors.to_pylist()) if reason is not None},
    )


def _windows(array: pa.Array) -> np.ndarray:
    """Int32 of shape (n, 4)."""
    values = array.flatten()
    if array.null_count or values.null_count:
        raise WireError("feature stream: a row does not say where its object lies.")
    return values.to_numpy().reshape(len(array), 4).copy()


def _tensors(columns: tuple[Column, ...], arrays: list[pa.Array]) -> tuple[torch.Tensor, ...]:
    """Each column takes as many of the arrays as it is wide."""
    rest = iter(arrays)
    return tuple(column.decode(*islice(rest, column.width)) for column in columns)
