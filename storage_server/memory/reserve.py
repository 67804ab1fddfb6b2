"""Room for a batch of one, kept back as a mapping that nobody writes to: it costs no memory, only the right to some.

Where the process may have so much and no more (a limit on its data, a kernel that promises no more than it has), free
memory inside of the heap may be there in pieces that are each too small. Then this room is given up for the moment in
which something is tried again alone.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

KNOWN = 64
"""Prefixes that are kept room for, those used last."""
ROUNDING_BYTES = 2**20
"""Beside the tensors: the C library rounds each up."""
SPARE_BYTES = 16 * 2**20
"""Where it can be had, so that two threads that start meanwhile, with stacks of 8 MiB, do not take it for good."""


class Room(Protocol):
    """Memory that is held."""

    def close(self) -> None: ...


def mapped(count: int) -> Room:
    """Private memory of so many bytes, none of it there before it is written to; OSError if it cannot be had."""
    return mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Reserve:
    """Thread-safe. Without one that can be had now, it is tried again with the next batch."""

    def __init__(self, take: Callable[[int], Room] = mapped) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._wanted: OrderedDict[str, int] = OrderedDict()
        self._room: Room | None = None
        self._held = self._lent = 0

    @property
    def held_bytes(self) -> int:
        """What is kept back at the moment."""
        return self._held

    def keep(self, name: str, count: int) -> None:
        """A batch of one of the prefix with this name takes so many bytes."""
        with self._lock:
            self._wanted[name] = count
            self._wanted.move_to_end(name)
            if len(self._wanted) > KNOWN:
                self._wanted.popitem(last=False)
            self._adjust()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """While the block runs nothing is kept back."""
        with self._lock:
            self._lent += 1
            self._adjust()
        try:
            yield
        finally:
            with self._lock:
                self._lent -= 1
                self._adjust()

    def _adjust(self) -> None:
        needed = 0 if self._lent else max(self._wanted.values(), default=-ROUNDING_BYTES) + ROUNDING_BYTES
        most = needed + SPARE_BYTES if needed else 0
        if needed <= self._held <= most:
            return
        if self._room is not None:
            self._room.close()
        self._room, self._held = None, 0
        for count in (most, needed) if needed else ():
            with suppress(OSError):  # not to be had now
                self._room, self._held = self._take(count), count
                return
