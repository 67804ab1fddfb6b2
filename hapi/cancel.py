"""Stopping work that is under way: a flag that wakes sleepers and breaks off what blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CancelledWork(Exception):
    """Raised inside of worker threads once nobody wants their result: the loop was left, the caller hung up, or the
    server ends. Nobody's error, and never shown to a user."""


class Cancel:
    """The stop signal of one piece of work. Set once, from any thread; it cannot be taken back."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._next = 0
        self.reason = ""

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises CancelledWork if the signal was given."""
        if self._event.is_set():
            raise CancelledWork(self.reason)

    def wait(self, seconds: float) -> None:
        """Sleeps, unless and until cancelled: then raises CancelledWork."""
        if self._event.wait(seconds):
            raise CancelledWork(self.reason)

    def set(self, reason: str = "") -> None:
        """Gives the signal, and calls what `calling` holds at this moment; later calls change nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """While the block runs, the signal also calls `callback` (to wake what blocks), from the thread that gives it.

        The callback must not raise. CancelledWork if the signal was given before.
        """
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._callbacks[number] = callback
        try:
            self.check()
            yield
        finally:
            with self._lock:
                del self._callbacks[number]
