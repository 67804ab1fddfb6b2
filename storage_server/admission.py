"""Who may begin: so many requests run, so many wait their turn, the rest are told at once to come back later."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hapi.cancel import Cancel
from hapi.errors import BusyError
from storage_server.metrics import Metrics

MAX_RETRY_SECONDS = 30.0


class Admission:
    """Belongs to the event loop; not thread-safe. First come, first served."""

    def __init__(self, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._free = max_running
        self._cancels: set[Cancel] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_seconds = 1.0
        self.draining = False

    @property
    def running(self) -> int:
        """Requests that have their turn."""
        return self._max_running - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait for theirs."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, cancel: Cancel) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the block; BusyError when full or draining, CancelledWork."""
        if self.draining:
            raise BusyError("this server is about to stop and takes no more requests. Ask another one.", 5.0)
        if self._free:
            self._free -= 1
        else:
            await self._wait(cancel)
        self._idle.clear()
        self._cancels.add(cancel)
        self._count()
        started = time.monotonic()
        try:
            yield
        finally:
            self._cancels.discard(cancel)
            self._mean_seconds += 0.1 * (time.monotonic() - started - self._mean_seconds)
            self._pass_on()

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more requests; waits for those that run, and ends what still runs after the grace time."""
        self.draining = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(BusyError("this server is about to stop. Ask another one.", 5.0))
        try:
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        except TimeoutError:
            self.end_all("the server is stopping")
            await self._idle.wait()

    def end_all(self, reason: str) -> None:
        """Cancels every request that runs."""
        for cancel in tuple(self._cancels):
            cancel.set(reason)

    async def _wait(self, cancel: Cancel) -> None:
        """Returns with a turn that somebody passed on."""
        if len(self._waiting) >= self._max_waiting:
            turns = 1 + len(self._waiting) / self._max_running
            raise BusyError(
                f"this server is full: {self.running} requests run and {len(self._waiting)} wait. "
                "Try again after the time in Retry-After, or ask another server.",
                retry_after_seconds=min(MAX_RETRY_SECONDS, max(1.0, turns * self._mean_seconds)),
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        self._count()
        try:
            with cancel.calling(lambda: loop.call_soon_threadsafe(future.cancel)):
                await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._pass_on()  # the turn came just as the caller left
            cancel.check()
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
            self._count()

    def _pass_on(self) -> None:
        """Gives a turn that ended to whoever waits longest."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                break
        else:
            self._free += 1
        if self._free == self._max_running:
            self._idle.set()
        self._count()

    def _count(self) -> None:
        self._metrics.active.set(self.running)
        self._metrics.waiting.set(len(self._waiting))
