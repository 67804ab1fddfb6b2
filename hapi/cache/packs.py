"""Packs: many entries in two files that only grow, so that an epoch of small features costs no file per feature.

`NAME.data` holds the bytes of the entries, `NAME.index` a header and then 64 bytes per entry. An entry exists once its
index record is whole; its bytes were written before. Nothing is synchronised to the disk: what a power failure leaves
half-written fails its checksum and is a miss.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

INDEX, DATA, PART = ".index", ".data", ".part"
MAGIC = b"hapi.pack/1\n\0\0\0\0"
HEADER = struct.Struct("<16sQ40x")
"""Magic, and the bytes that the pack may grow to while it is being written."""
RECORD = struct.Struct("<32sQQIIII")
"""Key, offset and length of the bytes, length of the description before the values, checksum, 0, record's checksum."""
RECORD_BYTES = RECORD.size
TOUCH_SECONDS = 30.0
"""How often a use is noted on disk, as the index file's time of modification."""


class DamagedEntryError(Exception):
    """An entry's bytes are not what was written."""


class Pack:
    """A pack as a reader sees it. `records` is what was read of the index, RECORD_BYTES per entry."""

    def __init__(self, path: Path) -> None:
        """Opens `path`, the index file; OSError, or ValueError if it is none."""
        self.path = path
        self._index = _Descriptor(_open_index(path))
        header = os.pread(self._index.number, HEADER.size, 0)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ValueError("no pack")
        self.limit_bytes: int = HEADER.unpack(header)[1]
        self._data = _Descriptor(os.open(path.with_suffix(DATA), os.O_RDONLY))
        self.records = bytearray()
        self.changes = 0
        """Counts whenever `records` changes."""
        self.is_used = False
        """Whether this process wrote to it or found something in it."""
        self._verified = bytearray()
        self._touched = -TOUCH_SECONDS

    def grow(self) -> range:
        """Reads the records that were added; answers their numbers. OSError."""
        known = len(self.records) // RECORD_BYTES
        start = HEADER.size + len(self.records)
        added = os.pread(self._index.number, max(0, os.fstat(self._index.number).st_size - start), start)
        whole = len(added) - len(added) % RECORD_BYTES
        self.records += added[:whole]
        self.changes += bool(whole)
        self._verified.extend(bytes(whole // RECORD_BYTES))
        return range(known, len(self.records) // RECORD_BYTES)

    def keys(self, numbers: range) -> list[tuple[int, bytes]]:
        """(number, key) of the entries among `numbers` whose record is intact and whose bytes are there."""
        size = os.fstat(self._data.number).st_size
        found = []
        for number in numbers:
            raw = bytes(self.records[number * RECORD_BYTES : (number + 1) * RECORD_BYTES])
            key, offset, length, description, _, _, check = RECORD.unpack(raw)
            if zlib.crc32(raw[:-4]) == check and description <= length and offset + length <= size:
                found.append((number, key))
        return found

    def key(self, number: int) -> bytes:
        return bytes(self.records[number * RECORD_BYTES : number * RECORD_BYTES + 32])

    def lengths(self, number: int) -> tuple[int, int]:
        """Bytes of the description, and of the values."""
        _, _, length, description, _, _, _ = RECORD.unpack_from(self.records, number * RECORD_BYTES)
        return description, length - description

    def read(self, number: int, into: Sequence[memoryview | bytearray]) -> None:
        """Fills the buffers with an entry's bytes; DamagedEntryError if those are others, or of another length."""
        _, offset, length, _, checksum, _, _ = RECORD.unpack_from(self.records, number * RECORD_BYTES)
        try:
            count = os.preadv(self._data.number, into, offset)
        except OSError as error:
            raise DamagedEntryError(str(error)) from error
        if count != length or sum(map(len, into)) != length:
            raise DamagedEntryError(f"{count} bytes instead of {length}")
        if not self._verified[number]:
            if _checksum(into) != checksum:
                raise DamagedEntryError("wrong checksum")
            self._verified[number] = 1

    @property
    def data_descriptor(self) -> int:
        """Of the entries' bytes, open for reading as long as the pack is."""
        return self._data.number

    def data_bytes(self) -> int:
        """How long the file of the entries is now; OSError."""
        return os.fstat(self._data.number).st_size

    def remove(self, number: int) -> None:
        """Lets no process find this entry again."""
        start = number * RECORD_BYTES
        self.records[start : start + RECORD_BYTES] = bytes(RECORD_BYTES)
        self.changes += 1
        os.pwrite(self._index.number, bytes(RECORD_BYTES), HEADER.size + start)

    def touch(self) -> None:
        """Notes that it was used now."""
        self.is_used = True
        now = time.monotonic()
        if now - self._touched >= TOUCH_SECONDS:
            self._touched = now
            os.utime(self._index.number)

    def is_being_written(self) -> bool:
        """Whether some process holds the writer's lock."""
        try:
            fcntl.flock(self._index.number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._index.number, fcntl.LOCK_UN)
        return False

    def unlink(self) -> None:
        """Removes both files; the index first, so that nobody finds entries without bytes."""
        unlink_pack(self.path)


class PackWriter:
    """Appends to a pack, alone. Belongs to the process that made it."""

    def __init__(self, path: Path, data: _Descriptor, index: _Descriptor, limit_bytes: int) -> None:
        """Of an index that is locked. Both files are open for writing, at their ends."""
        self.path, self.limit_bytes = path, limit_bytes
        self.process = os.getpid()
        self._data, self._index = data, index
        self._offset = os.fstat(data.number).st_size
        self.nbytes = os.fstat(index.number).st_size + self._offset

    @classmethod
    def begin(cls, folder: Path, limit_bytes: int) -> PackWriter:
        """Makes an empty pack, which appears whole and locked; OSError."""
        path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{INDEX}"
        part = path.with_suffix(PART)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        data = _Descriptor(os.open(path.with_suffix(DATA), flags, 0o644))
        index = _Descriptor(os.open(part, flags, 0o644))
        fcntl.flock(index.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(index.number, HEADER.pack(MAGIC, limit_bytes))
        os.rename(part, path)
        return cls(path, data, index, limit_bytes)

    @classmethod
    def resume(cls, pack: Pack) -> PackWriter:
        """Goes on with a pack that is there; OSError, BlockingIOError if somebody writes to it."""
        index = _Descriptor(os.open(pack.path, os.O_WRONLY | os.O_APPEND))
        fcntl.flock(index.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        records = os.fstat(index.number).st_size - HEADER.size
        os.ftruncate(index.number, HEADER.size + records - records % RECORD_BYTES)  # a writer may have died over one
        data = _Descriptor(os.open(pack.path.with_suffix(DATA), os.O_WRONLY | os.O_APPEND))
        return cls(pack.path, data, index, pack.limit_bytes)

    def append(self, key: bytes, description: bytes, values: Sequence[memoryview]) -> None:
        """Adds an entry; OSError when the disk does not take it, after which nothing more may be appended."""
        parts: list[bytes | memoryview] = [description, *values]
        length = sum(map(len, parts))
        _write_all(self._data.number, parts, length)
        record = RECORD.pack(key, self._offset, length, len(description), _checksum(parts), 0, 0)[:-4]
        record += struct.pack("<I", zlib.crc32(record))
        _write_all(self._index.number, [record], len(record))
        self._offset += length
        self.nbytes += length + RECORD_BYTES

    def has_room(self, size: int) -> bool:
        """Whether an entry of `size` bytes still fits."""
        return self.nbytes + size + RECORD_BYTES <= self.limit_bytes


def _open_index(path: Path) -> int:
    """For reading and writing, or for reading alone where that is refused: of those nothing can be removed."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(path, os.O_RDONLY)


def unlink_pack(index: Path) -> None:
    index.unlink(missing_ok=True)
    index.with_suffix(DATA).unlink(missing_ok=True)


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview], length: int) -> None:
    written = os.writev(descriptor, parts)
    if written < length:  # the disk is full, or a signal came
        rest = memoryview(b"".join(parts))[written:]
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]


def _checksum(parts: Sequence[bytes | bytearray | memoryview]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


class _Descriptor:
    """A file descriptor that is closed with the last reference, so that no reader finds it gone or another's."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
