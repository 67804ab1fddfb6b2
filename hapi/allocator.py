"""Keeping the memory that tensors free: without it a CPU spends as long on page faults as on a network.

Each layer frees tensors and allocates others. By default glibc gives those of more than 32 MiB (one activation of a
batch of 32) back to the kernel at once, which maps and clears them anew, page by page, at the next layer.
"""

from __future__ import annotations

import ctypes
import os

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ALWAYS_KEPT_BYTES = 2**31 - 1
_MAPPED_FROM_BYTES = 2**30
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory of this process for its next tensors; True if it was told.

    All threads then share one arena, so that what one frees another can use. The process stays as large as it ever
    was, up to 2 GiB of free memory at its top. Call it before threads start. Nothing happens where another C library is
    in use, or when the environment says how glibc is to work.
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
    return results == [1, 1, 1]


def release_free_memory() -> None:
    """Gives the memory that the C library holds free back to the system, on the host and wherever it lies in the heap.

    Takes milliseconds per GB, and the next tensors fault their pages in anew: for when nothing is going on, or when
    memory has run out. Nothing happens where another C library is in use.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc, or not a POSIX system
        return
    trim(0)
