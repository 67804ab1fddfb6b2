"""Out of memory, whoever says it: the one predicate, and giving back what a failed pass left behind."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hapi.allocator import release_free_memory
from storage_server.memory.shortage import SHORTAGE

_ALLOCATOR_SAYS = (
    "can't allocate memory",  # DefaultCPUAllocator, Linux
    "not enough memory",  # DefaultCPUAllocator, elsewhere
    "out of memory",  # CUDA runtime, cuDNN, cuBLAS wrappers; Arrow
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't start new thread",  # CPython: no memory for its stack (or no thread left for this user)
)


def is_out_of_memory(error: BaseException) -> bool:
    """The one predicate: whether less work at once could succeed where this failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR_SAYS)


def make_room(device: str) -> None:
    """Memory ran out: gives back what is free but kept, and has large tensors leave no holes for a while."""
    SHORTAGE.begin()
    release_memory(device)


def release_memory(device: str) -> None:
    """Gives what is free but kept back to the device and the machine, cycles of dead objects included.

    Not for every batch: all threads stand still while Python looks for cycles.
    """
    gc.collect()
    release_kept(device)


def release_kept(device: str) -> None:
    """The same without cycles: milliseconds per 100 MB, and the next tensors fault their pages in anew."""
    if device != "cpu":
        torch.cuda.empty_cache()
    release_free_memory()


@contextmanager
def exempt_from_collection() -> Iterator[None]:
    """Takes what is there now out of all searches for cycles meanwhile. For a process that is set up and serves.

    Libraries are some 400,000 objects. Looking through them takes 0.2 s and more, in which no thread of Python goes on.
    Afterwards they count again: of what is never freed a library says at the end of the process that it is leaked.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
