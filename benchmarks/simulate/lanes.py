"""Things that serve one piece of work after another: links, processors, and the fair queues of a storage node."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, Any]
BATCH = 32
"""Samples that a server on a CPU takes at once, at most."""


class Line:
    """First come, first served, at known durations: a client's processor. `busy_seconds` adds up."""

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment
        self._free_at = 0.0
        self.busy_seconds = 0.0

    def take(self, seconds: float) -> float:
        """When a service ends that begins once everything before it is done."""
        self._free_at = max(self._environment.now, self._free_at) + seconds
        self.busy_seconds += seconds
        return self._free_at

    def serve(self, seconds: float) -> simpy.Timeout:
        """An event at the end of such a service."""
        return self._environment.timeout(self.take(seconds) - self._environment.now)


class SharedLine:
    """A link: every connection that has something under way gets an equal part of it, as TCP does; what one connection
    sends goes in its order.

    Generalized processor sharing by virtual time (Parekh & Gallager, "A Generalized Processor Sharing Approach to Flow
    Control in Integrated Services Networks", 1993): that advances by one over the connections under way per second.
    """

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment
        self._virtual, self._at = 0.0, environment.now
        self._waiting: list[tuple[float, int, Hashable, simpy.Event]] = []
        self._under_way: dict[Hashable, tuple[int, float]] = {}
        """Connection -> (pieces under way, virtual time at which the last of them is through)."""
        self._count = 0
        self._round = 0
        self._busy_seconds = 0.0

    @property
    def busy_seconds(self) -> float:
        """In which something was under way."""
        return self._busy_seconds + (self._environment.now - self._at if self._under_way else 0.0)

    def carry(self, connection: Hashable, seconds: float) -> simpy.Event:
        """An event at the moment at which a piece is through that would take `seconds` alone."""
        self._advance()
        pieces, last = self._under_way.get(connection, (0, self._virtual))
        ends = max(last, self._virtual) + seconds
        self._under_way[connection] = (pieces + 1, ends)
        event = self._environment.event()
        self._count += 1
        heapq.heappush(self._waiting, (ends, self._count, connection, event))
        self._await_next()
        return event

    def _advance(self) -> None:
        now = self._environment.now
        if self._under_way:
            self._virtual += (now - self._at) / len(self._under_way)
            self._busy_seconds += now - self._at
        self._at = now

    def _await_next(self) -> None:
        """Looks again when the next piece is through, unless another one comes before."""
        self._round += 1
        if not self._waiting:
            return
        left = max(0.0, self._waiting[0][0] - self._virtual) * len(self._under_way)
        timer, awaited = self._environment.timeout(left), self._round
        timer.callbacks.append(lambda _: self._through() if awaited == self._round else None)

    def _through(self) -> None:
        self._advance()
        ends, _, connection, event = heapq.heappop(self._waiting)
        self._virtual = max(self._virtual, ends)  # rounding
        pieces, last = self._under_way.pop(connection)
        if pieces > 1:
            self._under_way[connection] = (pieces - 1, last)
        event.succeed()
        self._await_next()


@dataclass(eq=False)
class Piece:
    """Samples that one request of a tenant wants, of which `samples` are left.

    `done` succeeds with True, or with False when the node failed before the end; `part` is told of every few samples
    that are ready.
    """

    tenant: int
    lane: Hashable
    samples: int
    sample_seconds: float
    done: simpy.Event
    arrived: float
    part: Callable[[int], None]
    is_begun: bool = False


@dataclass
class _Backlog:
    """What waits of one tenant, and the service that it has had (seconds, on the queue's own clock)."""

    pieces: deque[Piece] = field(default_factory=deque)
    served: float = 0.0


class FairServer:
    """Serves one batch at a time: the least served waiting tenant's samples first, then others' of the same lane.

    The rules are those of the server itself. A batch takes samples of all requests that wait in one lane
    (storage_server.extraction.lanes): those of equal requests become ready together, and are sent together. A tenant
    that comes anew starts at the least service that any waiting tenant has had, so it neither waits for the others'
    history nor profits from its own (storage_server.scheduling.fair).
    """

    def __init__(self, environment: simpy.Environment, batch: int = BATCH) -> None:
        self.busy_seconds = 0.0
        self.waiting_seconds = 0.0
        self.pieces_done = 0
        self._environment, self._batch = environment, batch
        self._backlogs: dict[int, _Backlog] = {}
        self._clock = 0.0
        self._serving: list[tuple[Piece, int]] = []
        self.start()

    @property
    def is_idle(self) -> bool:
        return not self._backlogs and not self._serving

    def submit(
        self,
        tenant: int,
        sample_seconds: float,
        samples: int = 1,
        lane: Hashable = None,
        part: Callable[[int], None] = lambda count: None,
    ) -> simpy.Event:
        """Adds a request's samples; its event tells whether they were all served (True) or some are lost (False)."""
        piece = Piece(tenant, lane, samples, sample_seconds, self._environment.event(), self._environment.now, part)
        backlog = self._backlogs.get(tenant)
        if backlog is None:
            backlog = self._backlogs[tenant] = _Backlog(served=self._clock)
        backlog.pieces.append(piece)
        if not self._wake.triggered:
            self._wake.succeed()
        return piece.done

    def start(self) -> None:
        """Begins, empty."""
        self._serving = []
        self._wake = self._environment.event()
        self._process = self._environment.process(self._serve())

    def stop(self) -> None:
        """Everything on it is lost."""
        lost = {piece: None for backlog in self._backlogs.values() for piece in backlog.pieces}
        lost |= {piece: None for piece, _ in self._serving}
        self._backlogs.clear()
        self._serving = []
        self._process.interrupt()
        for piece in lost:
            piece.done.succeed(False)

    def _serve(self) -> Steps:
        try:
            while True:
                if not self._backlogs:
                    self._wake = self._environment.event()
                    yield self._wake
                self._serving = self._taken()
                seconds = sum(count * piece.sample_seconds for piece, count in self._serving)
                yield self._environment.timeout(seconds)
                self.busy_seconds += seconds
                ready, self._serving = self._serving, []
                for piece, count in ready:
                    piece.part(count)
                    if not piece.samples:
                        self.pieces_done += 1
                        piece.done.succeed(True)
        except simpy.Interrupt:
            return

    def _taken(self) -> list[tuple[Piece, int]]:
        """The next batch: pieces, and how many samples of each."""
        order = sorted(self._backlogs, key=lambda name: self._backlogs[name].served)
        self._clock = self._backlogs[order[0]].served
        lane, room, batch = self._backlogs[order[0]].pieces[0].lane, self._batch, list[tuple[Piece, int]]()
        for tenant in order:
            backlog = self._backlogs[tenant]
            for piece in [piece for piece in backlog.pieces if piece.lane == lane]:
                count = min(room, piece.samples)
                if not count:
                    return batch
                if not piece.is_begun:
                    piece.is_begun = True
                    self.waiting_seconds += self._environment.now - piece.arrived
                backlog.served += count * piece.sample_seconds
                batch.append((piece, count))
                room -= count
                piece.samples -= count
                if not piece.samples:
                    backlog.pieces.remove(piece)
            if not backlog.pieces:
                del self._backlogs[tenant]
        return batch


class StorageNode:
    """One storage server: its device, its readers (stored objects do not wait for the device) and its uplink."""

    def __init__(
        self, environment: simpy.Environment, number: int, bandwidth_bits_per_s: float, batch: int = BATCH
    ) -> None:
        self.number = number
        self.bandwidth_bits_per_s = bandwidth_bits_per_s
        self.device, self.readers, self.uplink = (
            FairServer(environment, batch),
            FairServer(environment),
            SharedLine(environment),
        )
        self.is_up = True
        self.up_seconds = 0.0
        self._started = environment.now
        self._environment = environment

    @property
    def worked_seconds(self) -> tuple[float, float, float]:
        """So far, of the device, the readers and the interface."""
        return self.device.busy_seconds, self.readers.busy_seconds, self.uplink.busy_seconds

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
