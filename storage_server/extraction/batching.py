"""How many samples go through a prefix at once: as many as fit, fewer after running out of memory all the same."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from hapi.cancel import Cancel
from hapi.errors import BusyError, MemoryBudgetError
from hapi.units import format_bytes
from storage_server.extraction.engine import Prefix
from storage_server.memory.budget import MemoryBudget
from storage_server.memory.outofmemory import is_out_of_memory, release_memory
from storage_server.metrics import Metrics

log = logging.getLogger(__name__)

REMEMBERED = 1024
"""Prefixes whose largest batch is remembered."""


class BatchSizer:
    """Batch sizes by the memory model, and what out-of-memory errors taught. Thread-safe."""

    def __init__(self, budget: MemoryBudget, max_batch: int) -> None:
        self._budget = budget
        self._max_batch = max_batch
        self._ceilings: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, prefix: Prefix) -> None:
        """Refuses, before anything runs, a prefix of which not one sample fits.

        MemoryBudgetError if it never will, with the numbers; BusyError if it would next to fewer other models.
        """
        memory, room = prefix.memory, self._budget.room_bytes
        what = f"{prefix.model} up to {prefix.cut.name}"
        if memory.predicted(1) > room:
            raise MemoryBudgetError(
                f"{what} needs {format_bytes(memory.weight_bytes)} for weights and "
                f"{format_bytes(memory.predicted(1) - memory.weight_bytes)} for a batch of one sample; this server may "
                f"use {format_bytes(room)}. Choose an earlier cut, or give the server a larger --memory-budget."
            )
        free = self._budget.batch_bytes()
        if memory.live_bytes(1) > free:
            raise BusyError(
                f"{what} needs {format_bytes(memory.live_bytes(1))} for a batch of one sample, "
                f"{format_bytes(free)} are free at the moment. Try again later.",
                retry_after_seconds=5.0,
            )

    def size(self, prefix: Prefix) -> int:
        """Most samples for the next batch, at least 1."""
        fits = prefix.memory.largest_batch(self._budget.batch_bytes() + prefix.memory.weight_bytes)
        return max(1, min(self._max_batch, fits, self._ceilings.get(prefix.key, self._max_batch)))

    def lower(self, prefix: Prefix, failed: int) -> int:
        """Remembers that `failed` samples were too many; answers half of them."""
        with self._lock:
            ceiling = min(max(1, failed // 2), self._ceilings.get(prefix.key, self._max_batch))
            self._ceilings[prefix.key] = ceiling
            self._ceilings.move_to_end(prefix.key)
            if len(self._ceilings) > REMEMBERED:
                self._ceilings.popitem(last=False)
        return ceiling


@dataclass(frozen=True)
class Piece:
    """The cut's tensors for rows `start` ... `start + len(tensors[0])` of a batch."""

    start: int
    tensors: tuple[torch.Tensor, ...]


def run_batch(prefix: Prefix, batch: torch.Tensor, sizer: BatchSizer, metrics: Metrics, cancel: Cancel) -> list[Piece]:
    """Runs a batch (n, ...) through the prefix: at once, or in halves and quarters if memory runs out.

    Runs on the device's thread. MemoryBudgetError if even one sample is too much; CancelledWork between pieces.
    """
    pieces: list[Piece] = []
    start, size = 0, len(batch)
    while start < len(batch):
        cancel.check()
        part = batch[start : start + size]
        with metrics.stage("prefix"):
            tensors, trouble = _attempt(prefix, part)
        if tensors is not None:
            metrics.batch_size.observe(len(part))
            pieces.append(Piece(start, tensors))
            start += len(part)
            continue
        release_memory(prefix.device)
        if len(part) == 1:
            raise MemoryBudgetError(
                f"{prefix.model} up to {prefix.cut.name} ran out of memory with a single sample ({trouble}). "
                "Choose an earlier cut, or a server with more memory."
            )
        metrics.out_of_memory.inc()
        size = sizer.lower(prefix, len(part))
        log.warning("%s up to %s: out of memory with %d samples, going on with %d", *prefix.key, len(part), size)
    return pieces


def _attempt(prefix: Prefix, part: torch.Tensor) -> tuple[tuple[torch.Tensor, ...] | None, str]:
    """The tensors, or None and what was said when memory ran out.

    Leaves no reference to the exception: its traceback would keep the failed pass's tensors alive through the retry.
    """
    try:
        return prefix.run(part), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error).partition("\n")[0][:200]
