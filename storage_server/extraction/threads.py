"""A fixed number of threads that take work in order."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Work = Callable[[], Any]


class WorkerThreads:
    """Like a thread pool, but its end does not wait for a thread that hangs in a read from a store that is gone.

    Work must not raise; what it raises all the same is logged. The queue is bounded by those who submit.
    """

    def __init__(self, count: int, name: str, prepare: Work | None = None) -> None:
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._prepare = prepare
        self._closed = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Adds work at the end; after `close` it is dropped."""
        self._work.put(work)

    def close(self, wait_seconds: float = 5.0) -> None:
        """Drops what has not begun, and waits for what has, but not for longer than `wait_seconds`."""
        self._closed = True
        for _ in self._threads:
            self._work.put(None)
        until = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _loop(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while (work := self._work.get()) is not None:
            if self._closed:
                continue
            try:
                work()
            except Exception:
                log.exception("work on %s failed", threading.current_thread().name)
            del work  # keeps nothing of a finished request alive while it waits
