"""Large pictures are decoded a few at a time: what they take grows with their pixels, not with their stored bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

ORDINARY_BYTES = 16 * 2**20
"""Pictures of up to so many bytes (5.6 megapixels) are decoded at once, as many as there are threads for it."""


class LargePictures:
    """A bound on the bytes of large pictures being decoded. Thread-safe; what is ordinary never waits."""

    def __init__(self, total_bytes: int, ordinary_bytes: int = ORDINARY_BYTES) -> None:
        """One picture of more than `total_bytes` is decoded while no other large one is."""
        self._total = total_bytes
        self._ordinary = ordinary_bytes
        self._changed = threading.Condition()
        self.used_bytes = 0

    @contextmanager
    def decoding(self, count: int) -> Iterator[None]:
        """Holds `count` bytes for the block, once they are free or no other large picture is being decoded."""
        if count <= self._ordinary:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self.used_bytes or self.used_bytes + count <= self._total)
            self.used_bytes += count
        try:
            yield
        finally:
            with self._changed:
                self.used_bytes -= count
                self._changed.notify_all()
