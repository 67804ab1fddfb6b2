"""Keeping the memory that tensors free: without it a CPU spends as long on page faults as on a network.

Each layer frees tensors and allocates others. By default glibc gives those of more than 32 MiB (one activation of a
batch of 32) back to the kernel at once, which maps and clears them anew, page by page, at the next layer.

Arrow brings an allocator of its own, which gives memory back, too, and keeps a heap for each thread: a server with a
thread for each answer spent a fifth of its time on clearing pages of 2 MiB for messages. So Arrow is to use glibc's.

The price is that the process stays large, with holes between what it uses: the kernel counts them as taken, the next
tensors can have them. `kept_bytes` says how much that is, `release_free_memory` gives it back.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ALWAYS_KEPT_BYTES = 2**31 - 1
_MAPPED_FROM_BYTES = 2**30
_APART_FROM_BYTES = 2**20
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory of this process for its next tensors; True if it was told.

    All threads then share one arena, so that what one frees another can use. The process stays as large as it ever
    was, up to 2 GiB of free memory at its top. Call it before threads start, and before Arrow is imported, which then
    takes its memory from there as well, unless the environment names another pool. Nothing happens where another C
    library is in use, or when the environment says how glibc is to work.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc, or not a POSIX system
        return False
    wanted = (
        (_M_TRIM_THRESHOLD, _ALWAYS_KEPT_BYTES),
        (_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES),
        (_M_ARENA_MAX, 1),
    )
    results = [mallopt(parameter, value) for parameter, value in wanted]
    _HEAP.is_told = results == [1, 1, 1]
    if _HEAP.is_told:
        os.environ.setdefault(_ARROW_POOL, "system")
    return _HEAP.is_told


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` has told the C library of this process so: networks take other times then."""
    return _HEAP.is_told


def map_large_apart(apart: bool) -> bool:
    """While `apart`, a tensor of 1 MiB or more for which the heap has no hole gets memory of its own; True if told so.

    That memory goes back to the system with the tensor. A heap that grows instead keeps holes: glibc asks for a few
    bytes more than an aligned tensor has and gives back what is left before and behind it, small pieces that others
    take and keep. So the hole that a tensor leaves stays by itself, too small for the next of the same size, and
    tensors of 12 MiB were seen to fail beside 60 MiB of such holes. Nothing happens unless `keep_freed_memory` has told
    glibc.
    """
    if not _HEAP.is_told:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _APART_FROM_BYTES if apart else _MAPPED_FROM_BYTES) == 1)


class _Usage(ctypes.Structure):
    """struct mallinfo2 of <malloc.h> (glibc 2.33 and later)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class _Heap:
    """What the C library holds. `others` is the process's memory that is not its: known after each release."""

    def __init__(self) -> None:
        self.is_told = False
        """Whether it was told to keep what is freed."""
        self._others: int | None = None
        self._lock = threading.Lock()

    def kept(self) -> int:
        usage = _usage()
        if usage is None:
            return 0
        used, free = usage
        with self._lock:
            if self._others is None:
                self._others = max(0, anonymous_bytes() - used - free)
            return max(0, min(free, anonymous_bytes() - used - self._others))

    def release(self) -> None:
        try:
            trim = ctypes.CDLL(None).malloc_trim
        except (AttributeError, OSError, TypeError):  # not glibc, or not a POSIX system
            return
        trim(0)
        usage = _usage()
        if usage is not None:
            with self._lock:  # nothing free is in memory now
                self._others = max(0, anonymous_bytes() - usage[0])


_HEAP = _Heap()


def kept_bytes() -> int:
    """Memory that was freed in this process, and that the kernel still counts as taken by it: the next tensors' first.

    An estimate: exact after a release, a few MB off with what other parts of the process took since. 0 where the C
    library does not tell.
    """
    return _HEAP.kept()


def release_free_memory() -> None:
    """Gives the memory that was freed but kept back to the system, holes inside the heap included.

    Takes milliseconds per 100 MB, and the next tensors fault their pages in anew: for when nothing is going on, or when
    memory is short. Nothing happens where another C library is in use.
    """
    _HEAP.release()


def anonymous_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory of this process that is no file's, so that the kernel cannot take it back; 0 where it does not tell."""
    try:
        _, resident, shared = statm.read_text().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _usage() -> tuple[int, int] | None:
    """(bytes in use, bytes free) of the C library's heap; None if it does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo.restype = _Usage
    usage = mallinfo()
    return usage.uordblks + usage.hblkhd, usage.fordblks
