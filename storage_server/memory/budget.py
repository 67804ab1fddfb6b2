"""The memory budget of a server and what is promised from it: weights of loaded models, queues, batches."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hapi.allocator import anonymous_bytes, kept_bytes
from hapi.errors import InputError
from hapi.machine import free_bytes
from hapi.units import format_bytes

SPARE_PART = 20
"""One part in so many of the free memory (5 %) is not planned with: other processes live, and small things grow."""
QUEUE_PART = 8
"""On a CPU at most this part (an eighth) of the budget goes to queues."""


def held_bytes(device: str) -> int:
    """What this process holds of a device's memory and the kernel cannot take back, kept but free memory included."""
    if device == "cpu":
        return anonymous_bytes()
    import torch

    return int(torch.cuda.memory_allocated(device))


class MemoryBudget:
    """What the server may take: the least of the setting and of what is free, watched; promises of it are kept here.

    On a CPU these share the budget: weights, which are pages of mapped archives and count as file cache; the queues
    between the stages, where stored objects, input tensors, rows not yet encoded and the one frame that each request
    encodes are charged; and one batch, with what its operations take for themselves. On a GPU queues lie in host memory
    and are no part of it. Not charged: pictures while they are decoded, of which the large ones have a bound of their
    own (storage_server.memory.pictures). Thread-safe.
    """

    def __init__(
        self,
        device: str = "cpu",
        setting: int | None = None,
        queue_bytes: int = 0,
        free: Callable[[str], int] = free_bytes,
        held: Callable[[str], int] = held_bytes,
        kept: Callable[[], int] = kept_bytes,
    ) -> None:
        """`free`, `held` and `kept` are asked each time: bytes free on the device, held by us, and freed but kept."""
        self._device, self._is_host = device, device == "cpu"
        self._setting = setting
        self._free, self._held, self._kept = free, held, kept
        self._at_start = held(device)
        self._spare = free(device) // SPARE_PART
        self._weights = 0
        self._lock = threading.Lock()
        if self.total_bytes <= 0:
            raise InputError(f"no memory is free on {device}. Stop other work there, or take another device.")
        self.queue_bytes = min(queue_bytes, self.total_bytes // QUEUE_PART) if self._is_host else queue_bytes

    @property
    def total_bytes(self) -> int:
        """What may be taken in all, as things are now: what is free, and what was taken since the start."""
        free = self._free(self._device) + max(0, self._held(self._device) - self._at_start) - self._spare
        return free if self._setting is None else min(self._setting, free)

    @property
    def weight_bytes(self) -> int:
        """Bytes promised to weights."""
        return self._weights

    @property
    def room_bytes(self) -> int:
        """What the budget allows for weights and one batch, whatever is loaded at the moment."""
        return max(0, self.total_bytes - (self.queue_bytes if self._is_host else 0))

    def take_weights(self, count: int) -> bool:
        """Promises `count` bytes to weights if the budget has them; says whether it had."""
        room = self.room_bytes
        with self._lock:
            if self._weights + count > room:
                return False
            self._weights += count
            return True

    def give_weights(self, count: int) -> None:
        """Takes a promise back."""
        with self._lock:
            self._weights -= count

    def batch_bytes(self) -> int:
        """What one batch may take now, next to the weights that are loaded: never more than is free in fact.

        Memory that the C library keeps is free for a batch; file cache is too, but for the weights' part of it.
        """
        free = self._free(self._device) - self._spare
        if self._is_host:
            free += self._kept() - self._weights
        return max(0, min(self.room_bytes - self._weights, free))

    def is_short(self) -> bool:
        """Whether the kernel is about to run out although the C library keeps memory: time to release it."""
        free = self._free(self._device) - (self._weights if self._is_host else 0)
        return self._is_host and free < self._spare < self._kept()

    def __str__(self) -> str:
        return f"{format_bytes(self.total_bytes)} on {self._device}, {format_bytes(self._weights)} of it in weights"
