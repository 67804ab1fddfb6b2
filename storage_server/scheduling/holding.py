"""The bytes between reading and sending: one hard bound, divided fairly among the requests that run.

Each request names the least it needs to go on (its largest sample) and all it could use. Who joins waits, in order,
until its least is free; from then on that is its own, so that no request can stop another. Beyond it each may hold its
max-min fair part, by the tenants' shares; who waits counts as well, so that what is given back is left for it. A third
of a part is left over for whoever comes next: it can begin before a slow caller takes what was computed for it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from hapi.cancel import Cancel
from storage_server.scheduling.fair import Flow, max_min

NEXT_PART = 1 / 3
"""Of a mean request's part, for whoever comes next: one alone has three quarters of all."""


class Holding:
    """What one request holds. `take` and `give` belong to the request's thread."""

    def __init__(self, queue: QueueBytes, flow: Flow, least: int, want: int) -> None:
        self.flow = flow
        self.least = least
        self.want = max(want, least)
        self.held = 0
        self.share_bytes = least
        """What it may hold at present."""
        self._queue = queue

    @property
    def reserved(self) -> int:
        """What nobody else can have."""
        return max(self.held, self.least)

    def take(self, count: int) -> bool:
        """Takes `count` bytes; says whether it may. Up to its least it always may."""
        return self._queue.take(self, count)

    def give(self, count: int) -> None:
        self._queue.give(self, count)

    def hand_on(self, other: Holding, count: int) -> None:
        """Gives `count` bytes to another, which may then hold more than its part until it gives them back."""
        self._queue.hand_on(self, other, count)


class QueueBytes:
    """At most `total_bytes` are ever held, by all requests together. Thread-safe."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._members: dict[Holding, None] = {}
        self._line: deque[Holding] = deque()
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """What is held."""
        with self._changed:
            return sum(member.held for member in self._members)

    def held_bytes(self) -> Counter[str]:
        """What is held by each tenant."""
        held: Counter[str] = Counter()
        with self._changed:
            for member in self._members:
                held[member.flow.name] += member.held
        return held

    @contextmanager
    def joined(self, flow: Flow, least: int, want: int, cancel: Cancel) -> Iterator[Holding]:
        """A holding for the block, once `least` bytes (at most the total) are free for it; CancelledWork."""
        holding = Holding(self, flow, least, want)
        with cancel.calling(self._wake):
            self._wait(holding, cancel)
        try:
            yield holding
        finally:
            with self._changed:
                holding.held = 0
                del self._members[holding]
                self._divide()

    def take(self, holding: Holding, count: int) -> bool:
        """See Holding.take."""
        with self._changed:
            after = holding.held + count
            if after > max(holding.share_bytes, holding.least):
                return False
            if self._reserved() - holding.reserved + max(after, holding.least) > self.total_bytes:
                return False
            holding.held = after
            return True

    def give(self, holding: Holding, count: int) -> None:
        """See Holding.give."""
        with self._changed:
            holding.held -= count
            if self._line:
                self._changed.notify_all()

    def hand_on(self, giver: Holding, taker: Holding, count: int) -> None:
        """See Holding.hand_on. Nobody else can take them in between."""
        with self._changed:
            giver.held -= count
            taker.held += count

    def _wait(self, holding: Holding, cancel: Cancel) -> None:
        with self._changed:
            self._line.append(holding)
            self._divide()
            try:
                while self._line[0] is not holding or self._reserved() + holding.least > self.total_bytes:
                    self._changed.wait()
                    cancel.check()
                self._members[holding] = None
            finally:
                self._line.remove(holding)
                self._divide()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _reserved(self) -> int:
        return sum(member.reserved for member in self._members)

    def _divide(self) -> None:
        """Fair parts for those that are there or wait, and one for the next."""
        everyone = dict.fromkeys((*self._members, *self._line))
        requests = Counter(holding.flow for holding in everyone)
        wants: dict[Hashable, float] = {holding: holding.want for holding in everyone}
        weights: dict[Hashable, float] = {holding: holding.flow.share / requests[holding.flow] for holding in everyone}
        if everyone:
            wants["next"], weights["next"] = self.total_bytes, NEXT_PART * sum(weights.values()) / len(weights)
        parts = max_min(self.total_bytes, wants, weights)
        for member in self._members:
            member.share_bytes = int(parts[member])
        self._changed.notify_all()
