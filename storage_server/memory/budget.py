"""The memory budget of a server and what is promised from it: weights of loaded models, queues, batches."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hapi.errors import InputError
from hapi.machine import free_bytes
from hapi.units import format_bytes

HEADROOM = 0.9
"""Part of the free memory that is planned with: allocators fragment, and other processes live, too."""
QUEUE_PART = 4
"""On a CPU at most this part (a quarter) of the budget goes to queues."""


class MemoryBudget:
    """The least of the setting and 0.9 of what was free at the start; promises of it are made and taken back here.

    Thread-safe. `queue_bytes` lie in host memory, so they count against the budget only if that is the device's.
    """

    def __init__(
        self,
        device: str = "cpu",
        setting: int | None = None,
        queue_bytes: int = 0,
        free: Callable[[str], int] = free_bytes,
    ) -> None:
        self._device = device
        self._free = free
        at_start = int(free(device) * HEADROOM)
        self.total_bytes = at_start if setting is None else min(setting, at_start)
        if self.total_bytes <= 0:
            raise InputError(f"no memory is free on {device}. Stop other work there, or take another device.")
        self.queue_bytes = min(queue_bytes, self.total_bytes // QUEUE_PART) if device == "cpu" else queue_bytes
        self._weights = 0
        self._lock = threading.Lock()

    @property
    def weight_bytes(self) -> int:
        """Bytes promised to weights."""
        return self._weights

    @property
    def room_bytes(self) -> int:
        """What the budget allows for weights and one batch, whatever is loaded at the moment."""
        return self.total_bytes - (self.queue_bytes if self._device == "cpu" else 0)

    def take_weights(self, count: int) -> bool:
        """Promises `count` bytes to weights if the budget has them; says whether it had."""
        with self._lock:
            if self._weights + count > self.room_bytes:
                return False
            self._weights += count
            return True

    def give_weights(self, count: int) -> None:
        """Takes a promise back."""
        with self._lock:
            self._weights -= count

    def batch_bytes(self) -> int:
        """What one batch may take now, next to the weights that are loaded: never more than is free in fact."""
        return max(0, min(self.room_bytes - self._weights, int(self._free(self._device) * HEADROOM)))

    def __str__(self) -> str:
        return f"{format_bytes(self.total_bytes)} on {self._device}, {format_bytes(self._weights)} of it in weights"
