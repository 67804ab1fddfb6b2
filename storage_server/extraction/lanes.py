"""Rows that wait for the device, in one lane per prefix, whoever they are for; and which batch is next.

The tenant that was served least chooses: the lane of its oldest row. The batch is filled with its rows first, then with
others' rows of the same lane, and each tenant is charged for its own. Who wants few samples, beside others who want
many, is not made to ride in a whole batch of theirs: its rows, and those of others who want few, are a small batch. So
it waits for the batch that runs (or not even for that, see storage_server.extraction.guests) and for its own, which
takes time in proportion to what it asked for.

A lane is ripe when it has a whole batch, when no further rows are on their way to it, when all rows of somebody who
wants few are there, or when its oldest row has waited as long as a batch takes; if nothing is ripe, the device sleeps
until something is. The last rows are computed in halves, where that takes long, so that
some are sent meanwhile.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from typing import Any

from storage_server.extraction.engine import Prefix
from storage_server.extraction.rows import Batch, Call, Lane, Row
from storage_server.extraction.sizing import BatchPolicy, Decision, Waiting, few_wanted
from storage_server.scheduling.fair import Flow, Ledger
from storage_server.scheduling.knee import START, power_of_two
from storage_server.scheduling.rates import Rates

Key = tuple[str, ...]
LAST_SECONDS = 0.02
"""Batches that take less are not halved at the end: sending their rows takes no time that would be worth it."""


class Lanes:
    """All lanes of one device. Not thread-safe: the executor's lock guards it."""

    def __init__(
        self,
        policy: BatchPolicy,
        rates: Rates,
        requests: Callable[[], Sequence[Waiting]],
        on_decision: Callable[[Prefix, Decision], Any] = lambda prefix, decision: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`requests` tells of all that run, for the policy."""
        self._policy = policy
        self._rates = rates
        self._requests = requests
        self._known_requests: Sequence[Waiting] | None = None
        self._on_decision = on_decision
        self.clock = clock
        self._lanes: dict[Key, Lane] = {}
        self._calls: dict[Flow, deque[Call]] = {}
        self._standing: Counter[Flow] = Counter()
        self._ledger = Ledger()

    @property
    def waiting(self) -> Counter[Key]:
        """Rows that wait, by prefix."""
        return Counter({key: len(lane.rows) for key, lane in self._lanes.items()})

    @property
    def calls(self) -> int:
        """Calls that wait."""
        return sum(map(len, self._calls.values()))

    def decision(self, prefix: Prefix) -> Decision:
        """The present batch size for a prefix."""
        lane = self._lanes.get(prefix.key)
        return self._policy.decide(prefix, self._known()) if lane is None else self._decided(lane)

    def decide_anew(self) -> None:
        """Requests came or went: sizes may be others."""
        self._known_requests = None
        for lane in self._lanes.values():
            lane.decision = None

    def expect(self, prefix: Prefix, count: int) -> None:
        """So many more rows (or, negative, fewer) are on their way."""
        lane = self._lane(prefix)
        lane.expected += count
        self._drop_if_empty(lane)

    def add(self, row: Row) -> None:
        """A row is here."""
        row.since = self.clock()
        lane = self._lane(row.prefix)
        lane.rows[row] = None
        for flow in row.flows:
            self._stand(lane, row, flow)

    def share(self, row: Row, flow: Flow) -> None:
        """The row is for `flow` as well; too late if it has been taken."""
        lane = self._lanes.get(row.prefix.key)
        if lane is not None and row in lane.rows and flow not in row.flows:
            row.flows.add(flow)
            self._stand(lane, row, flow)

    def unshare(self, row: Row, flow: Flow) -> None:
        """The row is no longer for `flow`, and goes when it is for nobody."""
        lane = self._lanes.get(row.prefix.key)
        if lane is None or row not in lane.rows:
            return
        if flow in row.flows:
            self._step_out(lane, row, flow)
            row.flows.discard(flow)
        if not row.flows:
            del lane.rows[row]
            self._drop_if_empty(lane)

    def ask(self, flow: Flow) -> None:
        """A request of `flow` waits to be let in: what others get meanwhile it is owed."""
        self._ledger.ask(flow)

    def let_in(self, flow: Flow) -> None:
        """It has been let in, or has gone."""
        self._ledger.let_in(flow)

    def add_call(self, call: Call) -> None:
        """A call waits."""
        self._calls.setdefault(call.flow, deque()).append(call)
        self._count(call.flow, 1)

    def next(self) -> Batch | Call | None:
        """What the device does next, if there is something that should not wait."""
        flow, lane = self._turn()
        if flow is None:
            return None
        return self._take_call(flow) if lane is None else self._form(lane, flow, self._size(lane))

    def next_small(self, seconds: float, fits: Callable[[Prefix, int], bool]) -> Batch | None:
        """What is next, if it is a batch that takes at most so long and that `fits` so many samples of."""
        flow, lane = self._turn()
        if flow is None or lane is None:
            return None
        size = self._decided(lane).samples
        most = min(size, round(seconds / self._rates.seconds(lane.prefix.key)))
        wanted = len(lane.lines[flow]) if flow.name in lane.few else min(size, len(lane.rows))
        return self._form(lane, flow, most) if wanted <= most and fits(lane.prefix, most) else None

    def _turn(self) -> tuple[Flow | None, Lane | None]:
        """Whose turn it is, and in which lane; no lane: a call is next. Nobody's if nothing is ripe."""
        now = self.clock()
        ripe = [(lane, flows) for lane in self._lanes.values() if (flows := self._ripe(lane, now))]
        for flow in self._ledger.order():
            if self._calls.get(flow):
                return flow, None
            mine = [lane for lane, flows in ripe if flow in flows]
            if mine:
                return flow, min(mine, key=lambda lane: next(iter(lane.lines[flow])).since)
        return None, None

    def due(self) -> float | None:
        """When, by the clock, something will be ripe if nothing happens until then."""
        return min((self._due(lane) for lane in self._lanes.values() if lane.rows), default=None)

    def settle(self, batch: Batch, seconds: float) -> dict[Flow, float]:
        """The batch took so long: charges are corrected. Answers the seconds of each flow."""
        over = seconds - batch.row_seconds * len(batch.rows)
        for flow, part in batch.parts.items():
            self._ledger.charge(flow, over * part)
        lane = self._lanes.get(batch.prefix.key)
        if lane is not None:
            lane.decision = None
        self._known_requests = None
        return {flow: seconds * part for flow, part in batch.parts.items()}

    def settle_call(self, call: Call, seconds: float) -> None:
        """The call took so long."""
        self._ledger.charge(call.flow, seconds)

    def _size(self, lane: Lane) -> int:
        """Of its next batch: of the last rows about half, if that takes long, to be sent while the rest is computed."""
        decision, rows = self._decided(lane), len(lane.rows)
        if lane.expected or not 2 * START <= rows <= decision.samples or decision.reason == "exploring":
            return decision.samples
        half = power_of_two(3 * rows // 4)
        return half if half * self._rates.seconds(lane.prefix.key) >= LAST_SECONDS else decision.samples

    def _form(self, lane: Lane, first: Flow, size: int) -> Batch:
        """A batch of rows that are wanted: those of `first`, then of others, the least served first."""
        row_seconds = self._rates.seconds(lane.prefix.key)
        is_small = first.name in lane.few
        batch = Batch(lane.prefix, [], row_seconds, is_small=is_small)
        self._ledger.serve(first, 0.0)
        while len(batch.rows) < size:
            others = [flow for flow in lane.lines if not is_small or flow.name in lane.few]
            if not others:
                break
            flow = first if first in lane.lines else self._ledger.order(others)[0]
            row = next(iter(lane.lines[flow]))
            self._remove(lane, row)
            if not row.is_wanted():
                batch.dropped.append(row)
            else:
                row.waited = self.clock() - row.since
                batch.rows.append(row)
                for payer in row.flows:
                    self._ledger.charge(payer, row_seconds / len(row.flows))
        batch.parts = _parts(batch.rows)
        self._drop_if_empty(lane)
        return batch

    def _take_call(self, flow: Flow) -> Call:
        call = self._calls[flow].popleft()
        if not self._calls[flow]:
            del self._calls[flow]
        self._ledger.serve(flow, 0.0)
        self._count(flow, -1)
        return call

    def _ripe(self, lane: Lane, now: float) -> Set[Flow]:
        """For whom the lane is ripe by now."""
        if lane.rows and self._due_whole(lane) <= now:
            return lane.lines.keys()
        return {flow for flow in lane.lines if self._due_few(lane, flow) <= now}

    def _due(self, lane: Lane) -> float:
        """When the lane is ripe for somebody."""
        return min(self._due_whole(lane), *(self._due_few(lane, flow) for flow in lane.lines))

    def _due_whole(self, lane: Lane) -> float:
        """When the lane is ripe for all: at once, or when its oldest row has waited as long as a batch takes."""
        size = self._decided(lane).samples
        if len(lane.rows) >= size or not lane.expected:
            return lane.oldest
        return lane.oldest + size * self._rates.seconds(lane.prefix.key)

    def _due_few(self, lane: Lane, flow: Flow) -> float:
        """When it is ripe for one who wants few: with all rows, or when the first has waited as long as all take."""
        wanted = lane.few.get(flow.name)
        if wanted is None:
            return math.inf
        oldest, count = next(iter(lane.lines[flow])).since, len(lane.lines[flow])
        return oldest if count >= wanted else oldest + wanted * self._rates.seconds(lane.prefix.key)

    def _decided(self, lane: Lane) -> Decision:
        if lane.decision is None:
            requests = self._known()
            lane.decision = self._policy.decide(lane.prefix, requests)
            lane.few = few_wanted(lane.prefix, requests, lane.decision.samples)
            self._on_decision(lane.prefix, lane.decision)
        return lane.decision

    def _known(self) -> Sequence[Waiting]:
        """All requests, asked for once for all lanes: of many tenants, that takes longer than deciding."""
        if self._known_requests is None:
            self._known_requests = self._requests()
        return self._known_requests

    def _lane(self, prefix: Prefix) -> Lane:
        return self._lanes.setdefault(prefix.key, Lane(prefix))

    def _drop_if_empty(self, lane: Lane) -> None:
        """A lane that nobody uses would keep its model in memory."""
        if lane.is_empty:
            self._lanes.pop(lane.prefix.key, None)

    def _remove(self, lane: Lane, row: Row) -> None:
        for flow in row.flows:
            self._step_out(lane, row, flow)
        del lane.rows[row]

    def _stand(self, lane: Lane, row: Row, flow: Flow) -> None:
        lane.lines.setdefault(flow, {})[row] = None
        self._count(flow, 1)

    def _step_out(self, lane: Lane, row: Row, flow: Flow) -> None:
        line = lane.lines[flow]
        del line[row]
        if not line:
            del lane.lines[flow]
        self._count(flow, -1)

    def _count(self, flow: Flow, change: int) -> None:
        self._standing[flow] += change
        if self._standing[flow]:
            self._ledger.join(flow)
        else:
            del self._standing[flow]
            self._ledger.leave(flow)


def _parts(rows: Sequence[Row]) -> dict[Flow, float]:
    """Of a batch of these rows, for each flow that they are for; many tenants mostly want the same rows."""
    parts: dict[Flow, float] = {}
    for flows, count in Counter(frozenset(row.flows) for row in rows).items():
        for flow in flows:
            parts[flow] = parts.get(flow, 0.0) + count / len(rows) / len(flows)
    return parts
