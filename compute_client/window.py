"""How many requests of one loader are under way: fewer when the server says that it is full, slowly more again."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from hapi.cancel import Cancel


@dataclass(frozen=True)
class Place:
    """One request's right to be under way; `round` is when it began, counted in decreases."""

    round: int


class Window:
    """Additive increase, multiplicative decrease (Chiu & Jain, "Analysis of the Increase and Decrease Algorithms for
    Congestion Avoidance in Computer Networks", 1989): halved when a request is refused, one more after as many answers
    as there are places, between 1 and `most`. Thread-safe.

    Requests that were under way together are refused together; that counts once. While the server's Retry-After lasts,
    nobody begins. Whoever is wanted first (the lowest number) goes first. In a forked child nobody is under way.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        """`now` tells the time in seconds."""
        self._most, self._now = most, now
        self._limit = float(most)
        self._round = 0
        self._closed_until = float("-inf")
        self._order = count()
        self.empty()
        _windows.add(self)

    def empty(self) -> None:
        """Nobody is under way, nor waits."""
        self._active = 0
        self._waiting: set[tuple[int, int]] = set()
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    @contextmanager
    def place(self, number: int, cancel: Cancel) -> Iterator[Place]:
        """Waits for a place and holds it for the block; CancelledWork."""
        with cancel.calling(self._wake):
            place = self._enter(number, cancel)
        try:
            yield place
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """A request was answered whole."""
        with self._changed:
            self._limit = min(float(self._most), self._limit + 1.0 / int(self._limit))
            self._changed.notify_all()

    def refused(self, place: Place, seconds: float) -> None:
        """The server is full, and asks not to come back before so many seconds."""
        with self._changed:
            self._closed_until = max(self._closed_until, self._now() + seconds)
            if place.round == self._round:
                self._limit = max(1.0, self._limit / 2)
                self._round += 1

    def _enter(self, number: int, cancel: Cancel) -> Place:
        mine = (number, next(self._order))
        with self._changed:
            self._waiting.add(mine)
            try:
                while not cancel.is_set and not self._admits(mine):
                    left = self._closed_until - self._now()
                    self._changed.wait(left if left > 0 else None)
                cancel.check()
                self._active += 1
                return Place(self._round)
            finally:
                self._waiting.discard(mine)
                self._changed.notify_all()

    def _admits(self, mine: tuple[int, int]) -> bool:
        return self._active < self.limit and mine == min(self._waiting) and self._now() >= self._closed_until

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


_windows: weakref.WeakSet[Window] = weakref.WeakSet()


def _empty_all() -> None:
    for window in list(_windows):
        window.empty()


# requests that were under way, and a lock that may have been held, are the parent's
os.register_at_fork(after_in_child=_empty_all)
