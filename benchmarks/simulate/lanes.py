"""Things that serve one piece of work after another: links, processors, and the fair queues of a storage node."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, Any]


class Line:
    """First come, first served, at known durations: a link, or a client's processor. `busy_seconds` adds up."""

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment
        self._free_at = 0.0
        self.busy_seconds = 0.0

    def serve(self, seconds: float) -> simpy.Timeout:
        """An event at the end of a service that begins when everything before it is done."""
        now = self._environment.now
        self._free_at = max(now, self._free_at) + seconds
        self.busy_seconds += seconds
        return self._environment.timeout(self._free_at - now)


@dataclass(eq=False)
class Piece:
    """Work of a tenant. `done` succeeds with True, or with False when the node failed before the end."""

    tenant: int
    seconds: float
    done: simpy.Event
    arrived: float


@dataclass
class _Backlog:
    """What waits of one tenant, and the service that it has had (seconds, on the queue's own clock)."""

    pieces: deque[Piece] = field(default_factory=deque)
    served: float = 0.0


class FairServer:
    """Serves one piece at a time, the least served waiting tenant first.

    The rule is that of the server itself (storage_server.scheduling.fair): a tenant that comes anew starts at the least
    service that any waiting tenant has had, so it neither waits for the others' history nor profits from its own.
    """

    def __init__(self, environment: simpy.Environment) -> None:
        self.busy_seconds = 0.0
        self.waiting_seconds = 0.0
        self.pieces_done = 0
        self._environment = environment
        self._backlogs: dict[int, _Backlog] = {}
        self._clock = 0.0
        self._serving: Piece | None = None
        self.start()

    @property
    def backlog_seconds(self) -> float:
        """Seconds of work that waits or runs."""
        waiting = sum(piece.seconds for backlog in self._backlogs.values() for piece in backlog.pieces)
        return waiting + (self._serving.seconds if self._serving else 0.0)

    @property
    def is_idle(self) -> bool:
        return not self._backlogs and self._serving is None

    def submit(self, tenant: int, seconds: float) -> simpy.Event:
        """Adds a piece; its event tells whether it was served (True) or lost (False)."""
        piece = Piece(tenant, seconds, self._environment.event(), self._environment.now)
        backlog = self._backlogs.get(tenant)
        if backlog is None:
            backlog = self._backlogs[tenant] = _Backlog(served=self._clock)
        backlog.pieces.append(piece)
        if not self._wake.triggered:
            self._wake.succeed()
        return piece.done

    def start(self) -> None:
        """Begins, empty."""
        self._serving = None
        self._wake = self._environment.event()
        self._process = self._environment.process(self._serve())

    def stop(self) -> None:
        """Everything on it is lost."""
        lost = [piece for backlog in self._backlogs.values() for piece in backlog.pieces]
        if self._serving is not None:
            lost.append(self._serving)
        self._backlogs.clear()
        self._serving = None
        self._process.interrupt()
        for piece in lost:
            piece.done.succeed(False)

    def _serve(self) -> Steps:
        try:
            while True:
                if not self._backlogs:
                    self._wake = self._environment.event()
                    yield self._wake
                tenant = min(self._backlogs, key=lambda name: self._backlogs[name].served)
                backlog = self._backlogs[tenant]
                piece = self._serving = backlog.pieces.popleft()
                self._clock = backlog.served
                backlog.served += piece.seconds
                if not backlog.pieces:
                    del self._backlogs[tenant]
                self.waiting_seconds += self._environment.now - piece.arrived
                yield self._environment.timeout(piece.seconds)
                self.busy_seconds += piece.seconds
                self.pieces_done += 1
                self._serving = None
                piece.done.succeed(True)
        except simpy.Interrupt:
            return


class StorageNode:
    """One storage server: its device, its readers (stored objects do not wait for the device) and its uplink."""

    def __init__(self, environment: simpy.Environment, number: int, bandwidth_bits_per_s: float) -> None:
        self.number = number
        self.bandwidth_bits_per_s = bandwidth_bits_per_s
        self.device, self.readers, self.uplink = FairServer(environment), FairServer(environment), Line(environment)
        self.is_up = True
        self.up_seconds = 0.0
        self._started = environment.now
        self._environment = environment

    @property
    def is_idle(self) -> bool:
        return self.device.is_idle and self.readers.is_idle

    def stop(self) -> None:
        """The node is gone, with everything on it."""
        if self.is_up:
            self.is_up = False
            self.up_seconds += self._environment.now - self._started
            self.device.stop()
            self.readers.stop()

    def start(self) -> None:
        """The node is back, empty."""
        self.is_up, self._started = True, self._environment.now
        self.device.start()
        self.readers.start()
