"""Stopping work that is under way: a flag that wakes sleepers and closes what blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CancelledWork(Exception):
    """Raised inside of worker threads once nobody wants their result; never reaches the user."""


class Cancel:
    """One iteration's stop signal. Set once, from any thread; it cannot be taken back."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._closers: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises CancelledWork if the signal was given."""
        if self._event.is_set():
            raise CancelledWork

    def wait(self, seconds: float) -> None:
        """Sleeps, unless and until cancelled: then raises CancelledWork."""
        if self._event.wait(seconds):
            raise CancelledWork

    def set(self) -> None:
        """Gives the signal, and calls what `closing` holds at this moment."""
        self._event.set()
        with self._lock:
            closers = list(self._closers.values())
        for close in closers:
            close()

    @contextmanager
    def closing(self, close: Callable[[], None]) -> Iterator[None]:
        """While the block runs, cancelling also calls `close` (to wake a blocked read); it must not raise."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._closers[number] = close
        try:
            self.check()
            yield
        finally:
            with self._lock:
                del self._closers[number]
