"""An idle server gives back what it keeps: to other programs, and so that its size shows what it really uses."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hapi.allocator import kept_bytes
from storage_server.memory.outofmemory import release_memory

TICK_SECONDS = 10.0
"""Long beside the pauses of a job (its client measures, validates, or trains on what it kept): after each release the
next batches touch their memory anew, at twice their time."""
WORTH_BYTES = 16 * 2**20
"""Less than this is left where it is."""


class IdleRelease:
    """Looks now and then whether nothing is going on, twice in a row; then releases memory, once until work comes."""

    def __init__(
        self,
        is_idle: Callable[[], bool],
        device: str,
        kept: Callable[[], int] = kept_bytes,
        release: Callable[[str], object] = release_memory,
    ) -> None:
        self._is_idle, self._device = is_idle, device
        self._kept, self._release = kept, release
        self._quiet = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hapi-idle", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def tick(self) -> None:
        """One look."""
        self._quiet = self._quiet + 1 if self._is_idle() else 0
        if self._quiet == 2 and (self._device != "cpu" or self._kept() >= WORTH_BYTES):
            self._release(self._device)

    def _loop(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self.tick()
