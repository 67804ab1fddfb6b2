"""What goes to and fro between those who ask for samples and the processes that decode: JSON and bytes."""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from typing import Any

import torch

READY = b"!"
"""What a process says when it is there."""
_LENGTHS = struct.Struct("!IQ")
"""Before each message: the bytes of its JSON, and of what follows that."""
_MOST_HEAD = 2**24


def send(to: socket.socket, head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """In one call where there is room for all of it: after each, a thread has to wait for Python's lock again."""
    text = json.dumps(head).encode()
    front = _LENGTHS.pack(len(text), len(body)) + text
    sent = to.sendmsg([front, body])
    if sent < len(front):
        to.sendall(front[sent:])
    if (rest := max(0, sent - len(front))) < len(body):
        to.sendall(memoryview(body)[rest:])


def receive_head(source: socket.socket) -> tuple[dict[str, Any], int]:
    """The JSON of a message, and how many bytes follow. ConnectionError if there is no more."""
    lengths = bytearray(_LENGTHS.size)
    fill(source, memoryview(lengths))
    head, body = _LENGTHS.unpack(lengths)
    if head > _MOST_HEAD:
        raise ConnectionError(f"a message of {head} bytes")
    text = bytearray(head)
    fill(source, memoryview(text))
    return json.loads(text), body


def fill(source: socket.socket, view: memoryview) -> None:
    """All of it in one call, see `send`, unless a signal comes. ConnectionError if it ends before."""
    while view:
        if (count := source.recv_into(view, flags=socket.MSG_WAITALL)) == 0:
            raise ConnectionResetError("the other process has ended")
        view = view[count:]


class SharedMemory:
    """Memory that two processes have in common, as large as the larger of them asked for. Each has an object of its
    own, of the same descriptor."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor is closed with this object."""
        self._descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    @classmethod
    def create(cls) -> SharedMemory:
        """Without a name, so that it goes when the last who has it does. OSError if there can be none."""
        return cls(os.memfd_create("hapi-samples", os.MFD_CLOEXEC))

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def floats(self, count: int, each: int) -> torch.Tensor:
        """The first float32 of it, of shape (count, each)."""
        size = 4 * count * each
        if self._mapped is None or len(self._mapped) < size:
            if os.fstat(self._descriptor).st_size < size:
                os.ftruncate(self._descriptor, size)
            self._mapped = mmap.mmap(self._descriptor, 0)
        return torch.frombuffer(self._mapped, dtype=torch.float32, count=count * each).view(count, each)

    def close(self) -> None:
        """What has been given out stays as long as somebody has it."""
        self._mapped = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
