"""Parcels: many entries in one object of a store, written in one go and never changed.

`NAME` tells when it was made and how many entries it has. The object is a header, a record per entry, and the entries:
key, description and values of each. A store keeps an object whole or not at all; what it gives back damaged fails a
checksum, of the records or of the entry, and is a miss.
"""

from __future__ import annotations

import re
import secrets
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hapi.cache import layout
from hapi.cache.keys import KEY_BYTES

MAGIC = b"hapi.parcel/1\n\0\0"
HEADER = struct.Struct("<16sII")
"""Magic, number of entries, checksum of the records."""
RECORD = np.dtype([("key", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("description", "<u4"), ("checksum", "<u4")])
"""First 64 bits of the key; the entry's place in the object, all its bytes, those of its description, checksum."""
MOST_ENTRIES = 2**20
MOST_ENTRY_BYTES = 2**31
_NAME = re.compile(r"(\d{12})-[0-9a-f]{8}-(\d{1,7})\.parcel")

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies in a parcel, and what it must be."""

    offset: int
    length: int
    description: int
    checksum: int


def short(key: bytes) -> int:
    """64 bits of a key: enough to find an entry, which knows its key whole."""
    return int.from_bytes(key[:8], "little")


def new_name(count: int, seconds: float) -> str:
    """A name for a parcel of so many entries, made `seconds` after 1970."""
    return f"{int(seconds):012d}-{secrets.token_hex(4)}-{count}.parcel"


def name_parts(name: str) -> tuple[int, int] | None:
    """(seconds after 1970, entries) of a parcel's name; None for another name."""
    found = _NAME.fullmatch(name)
    if found is None or not 0 < int(found[2]) <= MOST_ENTRIES:
        return None
    return int(found[1]), int(found[2])


def entry_of(key: bytes, tensors: Tensors) -> tuple[bytes, int]:
    """An entry's bytes, and those of its description, of host tensors; KeyError for a dtype that is not kept."""
    values = tuple(tensor.detach().contiguous() for tensor in tensors)
    description = layout.describe(values)
    return b"".join([key, description, *layout.buffers(values)]), len(description)


def wrap(entries: Sequence[tuple[bytes, int]]) -> bytes:
    """The object of what `entry_of` gave."""
    records = np.zeros(len(entries), RECORD)
    offset = index_bytes(len(entries))
    for number, (entry, description) in enumerate(entries):
        records[number] = (short(entry), offset, len(entry), description, zlib.crc32(entry))
        offset += len(entry)
    index = records.tobytes()
    return b"".join([HEADER.pack(MAGIC, len(entries), zlib.crc32(index)), index, *(entry for entry, _ in entries)])


def index_bytes(count: int) -> int:
    """Bytes of header and records, with which the object begins."""
    return HEADER.size + count * RECORD.itemsize


def read_index(data: bytes, count: int, size: int) -> np.ndarray:
    """The records (count,) of an object of `size` bytes that begins with `data`; ValueError for anything else."""
    if len(data) != index_bytes(count):
        raise ValueError("too short")
    magic, entries, checksum = HEADER.unpack_from(data)
    if magic != MAGIC or entries != count or zlib.crc32(data[HEADER.size :]) != checksum:
        raise ValueError("not the records of a parcel")
    records = np.frombuffer(data, RECORD, offset=HEADER.size)
    ends = records["offset"] + records["length"]
    heads = np.uint64(KEY_BYTES) + records["description"]
    if (ends > size).any() or (ends < records["offset"]).any() or (heads > records["length"]).any():
        raise ValueError("records of what is not there")
    return records


def unwrap(key: bytes, data: bytes, place: Place) -> Tensors | None:
    """The tensors of an entry's bytes, None if they belong to another key; ValueError if they are damaged."""
    if len(data) != place.length or zlib.crc32(data) != place.checksum:
        raise ValueError("wrong checksum")
    if data[:KEY_BYTES] != key:
        return None
    start = KEY_BYTES + place.description
    description = data[KEY_BYTES:start]
    if layout.described_bytes(description) != len(data) - start:
        raise ValueError("another length than described")
    tensors = layout.allocate(description)
    for buffer in layout.buffers(tensors):
        buffer[:] = data[start : start + len(buffer)]
        start += len(buffer)
    return tensors
