"""The requests that run: what they still want, per prefix and in seconds."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage_server.extraction.sizing import Waiting
from storage_server.scheduling.fair import Flow

if TYPE_CHECKING:
    from storage_server.extraction.pipeline import Extraction


class Running:
    """Thread-safe. `on_change` is called, from the request's thread, whenever one came or went."""

    def __init__(self) -> None:
        self._extractions: dict[Extraction, None] = {}
        self._lock = threading.Lock()
        self.on_change: Callable[[], object] = lambda: None

    def __len__(self) -> int:
        return len(self._extractions)

    @property
    def different(self) -> int:
        """Of the running requests, counting those for one prefix once: they mostly want the same samples."""
        with self._lock:
            return len({one.job.prefix.key if one.job.prefix else None for one in self._extractions})

    @contextmanager
    def one(self, extraction: Extraction) -> Iterator[None]:
        """It runs for the block."""
        with self._lock:
            self._extractions[extraction] = None
        self.on_change()
        try:
            yield
        finally:
            with self._lock:
                del self._extractions[extraction]
            self.on_change()

    def waiting(self) -> list[Waiting]:
        """What batch sizes depend on, of every request."""
        with self._lock:
            found = [extraction.waiting() for extraction in self._extractions]
        return [one for one in found if one is not None]

    def fair_share(self, flow: Flow) -> float:
        """The part of the server, 0 to 1, that is the flow's when all whose requests run want as much as they can."""
        with self._lock:
            flows = {one.job.flow for one in self._extractions} | {flow}
        return flow.share / math.fsum(one.share for one in flows)

    def backlog_seconds(self, row_seconds: Callable[[tuple[str, ...] | None], float]) -> float:
        """Predicted seconds of all that is left, by the seconds of a sample with a prefix's key."""
        with self._lock:
            left = [(one.job.prefix.key if one.job.prefix else None, one.samples_left) for one in self._extractions]
        return math.fsum(row_seconds(key) * samples for key, samples in left)
