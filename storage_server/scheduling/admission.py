"""Who may begin: so many requests run, so many wait their turn, the rest are told at once when to come back.

A tenant that runs nothing gets a turn as soon as there is one; a tenant alone may not take all turns, nor all places in
the waiting line, so that whoever comes next finds one. Turns that become free go to the tenant that was served least,
by the predicted seconds of its requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hapi.cancel import Cancel
from hapi.errors import BusyError
from storage_server.metrics import Metrics
from storage_server.scheduling.fair import SERVER, FairQueue, Flow

LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 30.0


@dataclass(eq=False)
class _Place:
    """One request in the waiting line."""

    turn: asyncio.Future[None]


class Admission:
    """Belongs to the event loop; not thread-safe."""

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        metrics: Metrics,
        backlog_seconds: Callable[[], float] = lambda: 0.0,
        *,
        is_shared: bool = True,
    ) -> None:
        """`backlog_seconds` predicts how long what runs will take. Not `is_shared`: all is for one tenant anyway."""
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._backlog_seconds = backlog_seconds
        self._is_shared = is_shared
        self._running: Counter[Flow] = Counter()
        self._cancels: set[Cancel] = set()
        self._line: FairQueue[_Place] = FairQueue()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def running(self) -> int:
        """Requests that have their turn."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests that wait for theirs."""
        return len(self._line)

    @property
    def backlog_seconds(self) -> float:
        """Predicted seconds of everything that runs or waits."""
        return self._backlog_seconds() + self._line.seconds

    @property
    def retry_seconds(self) -> float:
        """When to come back: about when one of those that are here will have gone."""
        ahead = max(1, self.running + self.waiting)
        return min(MOST_RETRY_SECONDS, max(LEAST_RETRY_SECONDS, self.backlog_seconds / ahead))

    def tenants(self) -> dict[str, tuple[int, int]]:
        """(requests that run, requests that wait) by tenant."""
        flows = {*self._running, *self._line.flows}
        return {flow.name: (self._running[flow], self._line.waiting(flow)) for flow in flows}

    @asynccontextmanager
    async def turn(self, cancel: Cancel, flow: Flow = SERVER, seconds: float = 0.0) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the block; BusyError when full or draining, CancelledWork.

        `seconds` are predicted for the request.
        """
        if self.draining:
            raise BusyError("this server is about to stop and takes no more requests. Ask another one.", 5.0)
        if self.running < self._max_running and self._may_run(flow):
            self._line.served(flow, seconds)
            self._running[flow] += 1
        else:
            await self._wait(cancel, flow, seconds)
        self._idle.clear()
        self._cancels.add(cancel)
        self._count()
        try:
            yield
        finally:
            self._cancels.discard(cancel)
            self._end(flow)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more requests; waits for those that run, and ends what still runs after the grace time."""
        self.draining = True
        while (popped := self._line.pop()) is not None:
            if not popped[1].turn.done():
                popped[1].turn.set_exception(BusyError("this server is about to stop. Ask another one.", 5.0))
        try:
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        except TimeoutError:
            self.end_all("the server is stopping")
            await self._idle.wait()

    def end_all(self, reason: str) -> None:
        """Cancels every request that runs."""
        for cancel in tuple(self._cancels):
            cancel.set(reason)

    def _may_run(self, flow: Flow) -> bool:
        """Whether one more of this tenant may run, if there is a turn: always its first."""
        if not self._is_shared or not self._running[flow]:
            return True
        tenants = {flow, *self._running, *self._line.flows}
        shares = sum(tenant.share for tenant in tenants)
        part = flow.share / (shares + shares / len(tenants))  # one part is left over for whoever comes next
        return self._running[flow] < max(1, int(self._max_running * part))

    def _may_wait(self, flow: Flow) -> bool:
        """Whether one more of this tenant may wait: one always, if any may; more while its part of the line lasts."""
        if not self._is_shared:
            return self.waiting < self._max_waiting
        mine = self._line.waiting(flow)
        if not mine:
            return self._max_waiting > 0
        tenants = len({flow, *self._line.flows})
        return self.waiting < self._max_waiting and mine < max(1, self._max_waiting // (tenants + 1))

    async def _wait(self, cancel: Cancel, flow: Flow, seconds: float) -> None:
        """Returns with a turn that somebody passed on."""
        if not self._may_wait(flow):
            raise BusyError(
                f"this server is full: {self.running} requests run and {self.waiting} wait, "
                f"{self._line.waiting(flow)} of them of tenant {flow.name!r}. "
                "Try again after the time in Retry-After, or ask another server.",
                retry_after_seconds=self.retry_seconds,
            )
        loop = asyncio.get_running_loop()
        place = _Place(loop.create_future())
        self._line.push(flow, place, seconds)
        self._count()
        try:
            with cancel.calling(lambda: loop.call_soon_threadsafe(place.turn.cancel)):
                await place.turn
        except asyncio.CancelledError:
            if place.turn.done() and not place.turn.cancelled() and not place.turn.exception():
                self._end(flow)  # the turn came just as the caller left
            cancel.check()
            raise
        finally:
            self._line.remove(flow, place)
            self._pass_on()  # its part of the turns may be another's now

    def _end(self, flow: Flow) -> None:
        """A turn ended."""
        self._running[flow] -= 1
        if not self._running[flow]:
            del self._running[flow]
        self._pass_on()

    def _pass_on(self) -> None:
        """Turns that are free go to those who may have them, the least served first."""
        while self.running < self._max_running and (popped := self._line.pop(self._may_run)) is not None:
            next_flow, place = popped
            if not place.turn.done():
                self._running[next_flow] += 1
                place.turn.set_result(None)
        if not self.running:
            self._idle.set()
        self._count()

    def _count(self) -> None:
        self._metrics.active.set(self.running)
        self._metrics.waiting.set(self.waiting)
