"""A bound on how many of one kind of request happen at once; more are refused, not queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hapi.errors import BusyError


class Slots:
    """Belongs to the event loop; not thread-safe."""

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._taken = 0

    def check(self) -> None:
        """BusyError if all are taken."""
        if self._taken >= self._count:
            raise BusyError(f"{self._taken} {self._what} are under way, the most at one time. Try again in a moment.")

    @contextmanager
    def one(self) -> Iterator[None]:
        """One slot for the block; BusyError if all are taken."""
        self.check()
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
