"""The bytes between reading and sending: one hard bound, divided fairly among the requests that run.

Each request names the least it needs to go on (its largest sample) and all it could use. Who joins waits until its
least is free, those of tenants that hold least first, else in order; from then on that is its own, so that no request
can stop another. Beyond it each may hold its max-min fair part, by the tenants' shares; who waits counts as well, so
that what is given back is left for it. A third of a part is left over for whoever comes next: it can begin before a
slow caller takes what was computed for it.
"""

from __future__ import annotations

import threading
from collections import Counter
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
        self.ended_waiting = threading.Event()
        """It has been let in, or does not want to be any longer."""
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
        self._line: dict[Holding, None] = {}
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What is held."""
        with self._lock:
            return sum(member.held for member in self._members)

    def held_bytes(self) -> Counter[str]:
        """What is held by each tenant."""
        held: Counter[str] = Counter()
        with self._lock:
            for member in self._members:
                held[member.flow.name] += member.held
        return held

    @contextmanager
    def joined(self, flow: Flow, least: int, want: int, cancel: Cancel) -> Iterator[Holding]:
        """A holding for the block, once `least` bytes (at most the total) are free for it; CancelledWork."""
        holding = Holding(self, flow, least, want)
        try:
            with cancel.calling(holding.ended_waiting.set):
                with self._lock:
                    self._line[holding] = None
                    self._divide()
                    self._let_in()
                holding.ended_waiting.wait()
                cancel.check()
            yield holding
        finally:
            with self._lock:
                holding.held = 0
                self._line.pop(holding, None)
                self._members.pop(holding, None)
                self._divide()
                self._let_in()

    def take(self, holding: Holding, count: int) -> bool:
        """See Holding.take."""
        with self._lock:
            after = holding.held + count
            if after > holding.least:  # up to there it is its own
                if after > holding.share_bytes:
                    return False
                if self._reserved() - holding.reserved + after > self.total_bytes:
                    return False
            holding.held = after
            return True

    def give(self, holding: Holding, count: int) -> None:
        """See Holding.give."""
        with self._lock:
            holding.held -= count
            self._let_in()

    def hand_on(self, giver: Holding, taker: Holding, count: int) -> None:
        """See Holding.hand_on. Nobody else can take them in between."""
        with self._lock:
            giver.held -= count
            taker.held += count

    def _let_in(self) -> None:
        """Those who wait and have room, in turn."""
        while self._line:
            first = self._first()
            if self._reserved() + first.least > self.total_bytes:
                return
            del self._line[first]
            self._members[first] = None
            self._divide()
            first.ended_waiting.set()

    def _first(self) -> Holding:
        """Who is next of those that wait: of the tenant that holds least, for its share, the one that came first.

        Nobody waits for ever: who holds nothing is behind nobody who came later.
        """
        held: dict[Flow, float] = {}
        for member in self._members:
            held[member.flow] = held.get(member.flow, 0.0) + member.reserved / member.flow.share
        return min(self._line, key=lambda holding: held.get(holding.flow, 0.0))

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
