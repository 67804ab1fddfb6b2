"""A fixed number of threads that take work by turns: fairly among tenants, in order within each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from storage_server.scheduling.fair import FairQueue, Flow, Place
from storage_server.scheduling.rates import Mean

log = logging.getLogger(__name__)

Work = Callable[[], Any]
Pieces = tuple[Work, int]
"""Work, and how many pieces it is."""


class WorkerThreads:
    """Like a thread pool, but fair, and its end does not wait for a thread that hangs in a read from a dead store.

    A piece of work is charged what the last ones took, and then what it took itself. Work must not raise; what it
    raises all the same is logged. The queue is bounded by those who submit.
    """

    def __init__(self, count: int, name: str, prepare: Work | None = None) -> None:
        self.count = count
        self.seconds = Mean()
        """What one piece of work takes. Pieces that had nothing to do (nobody waits any longer) do not count."""
        self._prepare = prepare
        self._queue: FairQueue[Pieces] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, flow: Flow, work: Work, others: Iterable[Flow] = (), *, count: int = 1) -> Place[Pieces]:
        """Adds work at the end of the flow's line; after `close` it is dropped. Work that answers False did nothing.

        It stands in the lines of the `others` as well, and is done once: when the first of them has its turn. It may
        be `count` pieces at once.
        """
        with self._changed:
            if self._closed:
                return Place((work, count), 0.0, [], is_taken=True)
            place = self._queue.push(flow, (work, count), count * self.seconds.value)
            for other in others:
                self._queue.share(place, other)
            self._changed.notify()
        return place

    def share(self, place: Place[Pieces], flow: Flow) -> None:
        """Puts submitted work into another flow's line as well, unless its turn has come. Nobody is woken for it."""
        with self._changed:
            self._queue.share(place, flow)

    def close(self, wait_seconds: float = 5.0) -> None:
        """Drops what has not begun, and waits for what has, but not for longer than `wait_seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _loop(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while self._one():
            pass

    def _one(self) -> bool:
        """Does one piece of work; a frame of its own keeps nothing of a finished request alive while a thread waits."""
        with self._changed:
            while not self._closed and not self._queue:
                self._changed.wait()
            popped = None if self._closed else self._queue.pop()
            predicted = self.seconds.value
        if popped is None:
            return False
        flow, (work, count) = popped
        started = time.perf_counter()
        idle = False
        try:
            idle = work() is False
        except Exception:
            log.exception("work on %s failed", threading.current_thread().name)
        seconds = 0.0 if idle else time.perf_counter() - started
        with self._changed:
            if not idle:
                self.seconds.add(seconds / count, count)
            self._queue.correct(flow, seconds - count * predicted)
        return True
