"""Weighted fair queueing: the flow that was served least, for its share, is next.

The credit form of deficit round robin (Shreedhar & Varghese, "Efficient Fair Queuing Using Deficit Round Robin",
IEEE/ACM ToN 1996) with the virtual time of start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996): what a flow
received, divided by its share, is its tag; the smallest tag is next; a flow that was idle begins at the tag of what was
chosen last, so that nobody saves up credit and nobody pays for the past of others. Costs are predicted seconds and may
be corrected once they are known. Over any stretch in which two flows both have something waiting, what they received
per share differs by no more than one most expensive item of each.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
REMEMBERED = 256
"""Idle flows that are remembered; those that virtual time has overtaken can be forgotten at no loss."""
CATCH_UP = 3
"""Who is owed something is charged one part in so many, until it has caught up: as if its share were so much larger."""


@dataclass(frozen=True)
class Flow:
    """Whose work it is: a tenant, with its share of what is scheduled."""

    name: str
    share: float = 1.0


SERVER = Flow("(server)")
"""The server's own work."""


class Ledger:
    """What each flow received. Not thread-safe.

    Flows join when something of theirs waits, and leave when nothing does. What others receive while a request asks to
    be let in, and nothing of its flow can wait yet, the flow is owed: it catches up with a larger share, by and by, so
    that nobody else has to stand still for it.
    """

    def __init__(self) -> None:
        self._tags: dict[Flow, float] = {}
        self._busy: set[Flow] = set()
        self._now = 0.0
        self._asking: Counter[Flow] = Counter()
        self._since: dict[Flow, float] = {}
        """Of those that ask: the virtual time up to which they are owed nothing, or it has been noted."""
        self._owed: dict[Flow, float] = {}

    def join(self, flow: Flow) -> None:
        """Something of `flow` waits; does nothing if it was waiting already."""
        if flow not in self._busy:
            self._note_owed(flow)
            self._busy.add(flow)
            self._tags[flow] = max(self._now, self._tags.get(flow, 0.0))

    def leave(self, flow: Flow) -> None:
        """Nothing of `flow` waits any longer."""
        self._busy.discard(flow)
        if flow in self._since:
            self._since[flow] = self._now
        if len(self._tags) > REMEMBERED + len(self._busy):
            self._tags = {flow: tag for flow, tag in self._tags.items() if flow in self._busy or tag > self._now}
            self._owed = {flow: seconds for flow, seconds in self._owed.items() if flow in self._tags}

    def ask(self, flow: Flow) -> None:
        """A request of `flow` waits to be let in."""
        if not self._asking[flow]:
            self._since[flow] = self._now
        self._asking[flow] += 1

    def let_in(self, flow: Flow) -> None:
        """A request that asked has been let in, or has gone."""
        self._note_owed(flow)
        self._asking[flow] -= 1
        if not self._asking[flow]:
            del self._asking[flow], self._since[flow]

    def charge(self, flow: Flow, seconds: float) -> None:
        """`flow` received so much; negative to take back what was charged too much."""
        if flow not in self._tags:
            return
        cost = seconds / flow.share
        if flow in self._owed:
            owed = min(self._owed[flow], cost * (1 - 1 / CATCH_UP))
            self._owed[flow] -= owed
            if self._owed[flow] <= 0:
                del self._owed[flow]
            cost -= owed
        self._tags[flow] += cost

    def order(self, flows: Iterable[Flow] | None = None) -> list[Flow]:
        """The waiting flows (of `flows`), the one to be served next first."""
        chosen = self._busy if flows is None else self._busy.intersection(flows)
        return sorted(chosen, key=self._rank)

    def first(self) -> Flow | None:
        """The waiting flow that is to be served next, if any waits."""
        return min(self._busy, key=self._rank, default=None)

    def serve(self, flow: Flow, seconds: float) -> None:
        """Chooses `flow`: virtual time becomes its tag, and it is charged."""
        self._now = max(self._now, self._tags.get(flow, 0.0))
        self.charge(flow, seconds)

    def tag(self, flow: Flow) -> float:
        """Seconds per share that count as received."""
        return self._tags.get(flow, self._now)

    def _note_owed(self, flow: Flow) -> None:
        """What was missed since the last note, if it asks and nothing of it waited."""
        if flow in self._since and flow not in self._busy:
            missed = self._now - max(self._since[flow], self._tags.get(flow, 0.0))
            if missed > 0:
                self._owed[flow] = self._owed.get(flow, 0.0) + missed
            self._since[flow] = self._now

    def _rank(self, flow: Flow) -> tuple[float, str]:
        return self._tags[flow], flow.name


@dataclass(eq=False)
class Place(Generic[T]):
    """An item in the lines of one flow or several, until its turn comes in one of them."""

    item: T
    seconds: float
    flows: list[Flow]
    is_taken: bool = False


class FairQueue(Generic[T]):
    """Items of many flows; first come, first served within a flow. Not thread-safe.

    An item may stand in the lines of several flows. It is taken once, when its turn comes in the first of them, and
    that one pays.
    """

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._lines: dict[Flow, OrderedDict[Place[T], None]] = {}
        self._length = 0
        self.seconds = 0.0
        """Predicted cost of all that waits. A number, which any thread may read at any time."""

    def __len__(self) -> int:
        return self._length

    def waiting(self, flow: Flow) -> int:
        """Items of one flow."""
        return len(self._lines.get(flow, ()))

    @property
    def flows(self) -> tuple[Flow, ...]:
        """Those who have something waiting."""
        return tuple(self._lines)

    def push(self, flow: Flow, item: T, seconds: float) -> Place[T]:
        """Adds an item that is predicted to cost so much."""
        place = Place(item, seconds, [])
        self._length += 1
        self.seconds += seconds
        self._stand(place, flow)
        return place

    def share(self, place: Place[T], flow: Flow) -> bool:
        """Puts what waits at the end of another flow's line as well; says whether it still waited."""
        if not place.is_taken and flow not in place.flows:
            self._stand(place, flow)
        return not place.is_taken

    def pop(self, may: Callable[[Flow], bool] | None = None) -> tuple[Flow, T] | None:
        """Takes the next item, of those flows that `may` be served now; None if there is none."""
        flow = self._ledger.first() if may is None else next(filter(may, self._ledger.order()), None)
        if flow is None:
            return None
        place = next(iter(self._lines[flow]))
        self._ledger.serve(flow, place.seconds)
        self._take(place)
        return flow, place.item

    def remove(self, flow: Flow, item: T) -> bool:
        """Takes one item out of the middle of its line; says whether it was there."""
        found = next((place for place in self._lines.get(flow, ()) if place.item is item), None)
        if found is None:
            return False
        self._take(found)
        return True

    def served(self, flow: Flow, seconds: float) -> None:
        """`flow` was served without having waited."""
        self._ledger.join(flow)
        self._ledger.serve(flow, seconds)
        if flow not in self._lines:
            self._ledger.leave(flow)

    def correct(self, flow: Flow, seconds: float) -> None:
        """What was popped cost so much more (or, negative, less) than predicted."""
        self._ledger.charge(flow, seconds)

    def _stand(self, place: Place[T], flow: Flow) -> None:
        place.flows.append(flow)
        self._lines.setdefault(flow, OrderedDict())[place] = None
        self._ledger.join(flow)

    def _take(self, place: Place[T]) -> None:
        """Out of all lines."""
        place.is_taken = True
        self._length -= 1
        self.seconds = self.seconds - place.seconds if self._length else 0.0  # rounding does not add up for ever
        for flow in place.flows:
            line = self._lines[flow]
            del line[place]
            if not line:
                del self._lines[flow]
                self._ledger.leave(flow)


def max_min(total: float, wants: dict[Hashable, float], weights: dict[Hashable, float]) -> dict[Hashable, float]:
    """Weighted max-min fair division of `total`: nobody gets more than it wants, what it leaves goes to the others.

    Water-filling (Bertsekas & Gallager, "Data Networks", 6.5.2): in the order of want per weight, each gets the least
    of its want and its weight's part of what is left.
    """
    given: dict[Hashable, float] = {}
    left, weight = total, sum(weights[name] for name in wants)
    for name in sorted(wants, key=lambda name: wants[name] / weights[name]):
        given[name] = min(wants[name], left * weights[name] / weight)
        left, weight = left - given[name], weight - weights[name]
    return given
