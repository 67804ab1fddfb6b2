"""The frames of an Arrow IPC stream, cut out of arbitrary chunks of bytes with bounded memory.

Arrow's own stream reader trusts the lengths that a stream declares and takes an end of input for an end of stream.
This one believes nothing before it has arrived: memory grows with the bytes received, declared lengths have limits
(the decompressed ones too), and only the end-of-stream marker ends a stream.

A frame is 0xFFFFFFFF, int32 metadata length, metadata (a flatbuffer `Message`), body (Arrow columnar format, "IPC
streaming format"). Metadata length 0 is the end-of-stream marker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hapi.errors import TruncatedStreamError, WireError

CONTINUATION = b"\xff\xff\xff\xff"
END_OF_STREAM = CONTINUATION + b"\0\0\0\0"
_PREFIX = 8
_LARGE_PIECE = 16 * 2**10

# slots of the flatbuffer tables Message, KeyValue and RecordBatch, the tag of a record batch (format/Message.fbs)
_MESSAGE_KIND, _MESSAGE_HEADER, _MESSAGE_BODY_LENGTH, _MESSAGE_METADATA = 1, 2, 3, 4
_ENTRY_KEY, _ENTRY_VALUE = 0, 1
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3
_RECORD_BATCH = 3
_MOST_ENTRIES = 64


@dataclass(frozen=True)
class StreamLimits:
    """What a reader allows one message of a stream to take, in bytes and in samples."""

    metadata_bytes: int = 2**20
    body_bytes: int = 2**30
    """Holds for the body as it travels and as it is after decompression."""
    rows: int = 65_536
    """As many as one request may name (protocol.MAX_SPAN): each costs a reader Python's own objects, and may be next to
    nothing where it is compressed."""


class Frames:
    """Turns chunks into frames: `feed` yields each complete one; `finish` says whether the stream was whole."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.ended = False
        self.received_bytes = 0
        self._limits = limits or StreamLimits()
        self._reset()

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not complete."""
        return self._size

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[bytearray]:
        """Yields each frame (prefix, metadata and body in one writable buffer) that `chunk` completes.

        A generator: it must be run to its end. A chunk must not change afterwards: large ones are not copied until
        their frame is complete. Raises WireError at the first byte that cannot be right.
        """
        rest = memoryview(chunk).cast("B")
        self.received_bytes += len(rest)
        while len(rest):
            if self.ended:
                raise WireError(f"feature stream: {len(rest)} bytes after the end marker.")
            taken = rest[: self._wanted - self._size]
            self._keep(taken)
            rest = rest[len(taken) :]
            while self._size == self._wanted:
                if self._whole:
                    frame = self._joined()
                    self._reset()
                    yield frame
                else:
                    self._extend()

    def finish(self) -> None:
        """Raises TruncatedStreamError unless the end marker was seen."""
        if not self.ended:
            raise TruncatedStreamError(
                f"feature stream: ended after {self.received_bytes} bytes without its end marker. "
                "The connection or the server broke; ask for the missing samples again."
            )

    def _reset(self) -> None:
        self._parts: list[bytearray | memoryview] = []
        self._size = 0
        self._wanted = _PREFIX
        self._whole = False

    def _keep(self, piece: memoryview) -> None:
        """Adds to the frame: large pieces as they are, small ones joined, so that a list of them never costs more."""
        self._size += len(piece)
        if len(piece) >= _LARGE_PIECE:
            self._parts.append(piece)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += piece
        else:
            self._parts.append(bytearray(piece))

    def _joined(self) -> bytearray:
        """What is there of the frame, in one buffer of its own."""
        first = self._parts[0]
        if len(self._parts) > 1 or not isinstance(first, bytearray):
            first = bytearray().join(self._parts)
            self._parts = [first]
        return first

    def _extend(self) -> None:
        """Reads from the part of the frame that is here how much of it is still to come."""
        frame = self._joined()
        if len(frame) == _PREFIX:
            length = struct.unpack_from("<i", frame, 4)[0]
            if frame[:4] != CONTINUATION:
                raise WireError(f"feature stream: found {bytes(frame)!r} where an Arrow IPC message should start.")
            if length == 0:
                self.ended = True
                self._reset()
            elif 0 < length <= self._limits.metadata_bytes and length % 8 == 0:
                self._wanted += length
            else:
                raise WireError(f"feature stream: a message declares {length} bytes of metadata.")
        else:
            message = _root(memoryview(frame)[_PREFIX:])
            body = message.number(_MESSAGE_BODY_LENGTH, "<q")
            if not 0 <= body <= self._limits.body_bytes:
                raise WireError(
                    f"feature stream: a message declares a body of {body} bytes, over the limit of "
                    f"{self._limits.body_bytes}."
                )
            self._wanted += body
            self._whole = True


def check_buffers(frame: bytearray, limits: StreamLimits) -> None:
    """Refuses a record batch whose buffers lie outside its body or would decompress to more than the limit."""
    metadata_bytes = struct.unpack_from("<i", frame, 4)[0]
    message = _root(memoryview(frame)[_PREFIX : _PREFIX + metadata_bytes])
    if message.number(_MESSAGE_KIND, "<B") != _RECORD_BATCH:
        return
    body = memoryview(frame)[_PREFIX + metadata_bytes :]
    batch = message.table(_MESSAGE_HEADER)
    compressed = batch.has(_BATCH_COMPRESSION)
    total = 0
    for offset, length in batch.pairs(_BATCH_BUFFERS):
        if offset < 0 or length < 0 or offset % 8 or offset + length > len(body):
            raise WireError("feature stream: a column's buffer lies outside its message.")
        if compressed and length:
            if length < 8:
                raise WireError("feature stream: a compressed buffer is too short to say its length.")
            size = struct.unpack_from("<q", body, offset)[0]
            total += length if size == -1 else size
            if size < -1 or total > limits.body_bytes:
                raise WireError(
                    f"feature stream: a message of {len(body)} bytes declares that it decompresses to more than "
                    f"the limit of {limits.body_bytes} bytes."
                )


def custom_metadata(frame: bytearray) -> dict[bytes, bytes]:
    """What a message carries beside its data; WireError for too many entries, or some that lie outside of it."""
    metadata_bytes = struct.unpack_from("<i", frame, 4)[0]
    message = _root(memoryview(frame)[_PREFIX : _PREFIX + metadata_bytes])
    return {entry.text(_ENTRY_KEY): entry.text(_ENTRY_VALUE) for entry in message.tables(_MESSAGE_METADATA)}


class _Table:
    """A flatbuffer table; every read is checked against the bytes that are there."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position
        self._slots = position - _read(data, position, "<i")
        self._slots_bytes = _read(data, self._slots, "<H")

    def _field(self, slot: int) -> int | None:
        entry = 4 + 2 * slot
        offset = _read(self._data, self._slots + entry, "<H") if entry + 2 <= self._slots_bytes else 0
        return self._position + offset if offset else None

    def has(self, slot: int) -> bool:
        return self._field(slot) is not None

    def number(self, slot: int, code: str) -> int:
        """A scalar field, 0 if absent."""
        position = self._field(slot)
        return 0 if position is None else _read(self._data, position, code)

    def _reference(self, slot: int) -> int:
        position = self._field(slot)
        if position is None:
            raise WireError("feature stream: a message lacks a part that it must have.")
        return position + _read(self._data, position, "<I")

    def table(self, slot: int) -> _Table:
        return _Table(self._data, self._reference(slot))

    def text(self, slot: int) -> bytes:
        """A string."""
        start = self._reference(slot)
        end = start + 4 + _read(self._data, start, "<I")
        if end > len(self._data):
            raise WireError("feature stream: the metadata of a message points outside itself.")
        return bytes(self._data[start + 4 : end])

    def tables(self, slot: int) -> Iterator[_Table]:
        """A vector of a few tables."""
        if not self.has(slot):
            return
        start = self._reference(slot)
        count = _read(self._data, start, "<I")
        if count > _MOST_ENTRIES:
            raise WireError(f"feature stream: a message has {count} entries of metadata, over {_MOST_ENTRIES}.")
        for index in range(count):
            position = start + 4 + 4 * index
            yield _Table(self._data, position + _read(self._data, position, "<I"))

    def pairs(self, slot: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two int64."""
        if not self.has(slot):
            return
        start = self._reference(slot)
        count = _read(self._data, start, "<I")
        for index in range(count):
            position = start + 4 + 16 * index
            yield _read(self._data, position, "<q"), _read(self._data, position + 8, "<q")


def _root(data: memoryview) -> _Table:
    return _Table(data, _read(data, 0, "<I"))


def _read(data: memoryview, position: int, code: str) -> int:
    if position < 0 or position + struct.calcsize(code) > len(data):
        raise WireError("feature stream: the metadata of a message points outside itself.")
    return int(struct.unpack_from(code, data, position)[0])
