"""One tenant's training job: spans in flight, dealt to the cuts of its plan, served by nodes, carried, finished."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import simpy

from benchmarks.simulate.lanes import Line, SharedLine, Steps, StorageNode
from compute_client.spans import Dealer
from hapi.plan import INPUT, Plan, Profile

IN_FLIGHT = 6
"""Spans that a client asks for at once (the default of hapi.DataLoader)."""
DRIFT = 1.25
"""A client plans anew when its part of the nodes has changed by this factor since it planned last."""
RETRY_SECONDS = 1.0
"""After this long a client asks another node for what a failed one owed."""


@dataclass(frozen=True)
class JobSpec:
    """What a tenant wants.

    Attributes:
        profile: costs per cut, of the node and of the client.
        plan: the mix of cuts; where there is `replan`, the one with a node to itself.
        bandwidth_bits_per_s, latency_seconds: its own link.
        samples, epochs, span: per epoch, passes, and samples per request.
        head_seconds: per sample of an epoch whose features are cached on the client; None where nothing is cached.
        start_seconds: when it begins.
        replan: the plan for a part of a node's time (above 0, at most 1); None if `plan` is kept whatever happens.
        host: tenants of one host share its processor; None for a host of its own.
    """

    profile: Profile
    plan: Plan
    bandwidth_bits_per_s: float
    latency_seconds: float
    samples: int
    epochs: int
    span: int
    head_seconds: float | None = None
    start_seconds: float = 0.0
    replan: Callable[[float], Plan] | None = None
    host: int | None = None

    @property
    def alone_seconds(self) -> float:
        """The job's time with node and link to itself, by the planner's own model of a pipeline."""
        costs = {cut.name: cut for cut in self.profile.cuts}
        server = sum(share.share * costs[share.name].server_seconds for share in self.plan.cuts)
        bits = 8 * sum(share.share * costs[share.name].out_bytes for share in self.plan.cuts)
        link = bits / self.bandwidth_bits_per_s
        client = sum(share.share * costs[share.name].client_seconds for share in self.plan.cuts)
        first = min(self.span, self.samples)
        cold = (self.samples - first) * max(server, link, client) + first * (server + link + client)
        again = self.epochs - 1
        return cold + again * (cold if self.head_seconds is None else self.samples * self.head_seconds)


@dataclass
class Load:
    """How many nodes are up, and how many tenants ask them for something."""

    nodes_up: int = 0
    asking: int = 0

    @property
    def share(self) -> float:
        """A tenant's part of a node's time: above 0, at most 1."""
        return min(1.0, max(1, self.nodes_up) / max(1, self.asking))


class Tenant:
    """A job as simulated. `finished` is None until it is; `retries` counts spans that a failed node owed."""

    def __init__(
        self,
        environment: simpy.Environment,
        number: int,
        job: JobSpec,
        choose: Callable[[int, int, int], StorageNode | None],
        load: Load,
        processor: Line | None = None,
    ) -> None:
        """`choose(tenant, span, attempt)` names the node to ask; None if none is up.

        `load` is what plans follow. `processor` is that of its host, if others are on it.
        """
        self.number, self.job = number, job
        self.started = job.start_seconds
        self.finished: float | None = None
        self.bytes = 0.0
        self.retries = 0
        self._environment, self._choose, self._load = environment, choose, load
        self._link, self._client = SharedLine(environment), processor or Line(environment)
        self._planned_for = 0.0
        self._dealer = self._deal(job.plan)
        self._costs = {cut.name: cut for cut in job.profile.cuts}
        self.process = environment.process(self._run())

    def _run(self) -> Steps:
        environment, job = self._environment, self.job
        yield environment.timeout(job.start_seconds)
        for epoch in range(job.epochs):
            if epoch and job.head_seconds is not None:
                yield self._client.serve(job.samples * job.head_seconds)
                continue
            self._load.asking += 1
            yield from self._epoch(epoch)
            self._load.asking -= 1
        self.finished = environment.now

    def _epoch(self, epoch: int) -> Steps:
        job, window = self.job, simpy.Resource(self._environment, IN_FLIGHT)
        count = math.ceil(job.samples / job.span)
        spans = []
        for number in range(count):
            turn = window.request()
            yield turn
            self._follow()
            cut, size = self._dealer.next()
            size = min(size, job.samples - number * job.span)
            self._dealer.dealt(cut, size)
            spans.append(self._environment.process(self._span(epoch * count + number, cut, size, window, turn)))
        yield self._environment.all_of(spans)

    def _follow(self) -> None:
        """Plans for the nodes that are up and the tenants that work, now; only when that has changed."""
        if self.job.replan is None:
            return
        share = self._load.share
        if not self._planned_for or not 1 / DRIFT < share / self._planned_for < DRIFT:
            self._planned_for = share
            self._dealer = self._deal(self.job.replan(share))

    def _deal(self, plan: Plan) -> Dealer:
        return Dealer(plan.cuts, {share.name: self.job.span for share in plan.cuts})

    def _span(
        self, number: int, cut: str, size: int, window: simpy.Resource, turn: simpy.resources.resource.Request
    ) -> Steps:
        cost, attempt, missing = self._costs[cut], 0, size
        carried: list[simpy.Event] = []
        while missing:
            yield self._environment.timeout(self.job.latency_seconds)
            node = self._choose(self.number, number, attempt)
            if node is not None:
                ready: list[int] = []

                def send(count: int, node: StorageNode = node, ready: list[int] = ready) -> None:
                    ready.append(count)
                    carried.extend(self._carried(node, number, count * cost.out_bytes))

                queue = node.readers if cut == INPUT else node.device
                yield queue.submit(self.number, cost.server_seconds, missing, (self.job.profile.model, cut), send)
                missing -= sum(ready)
            if missing:  # of which the next node is asked
                attempt += 1
                self.retries += 1
                yield self._environment.timeout(RETRY_SECONDS)
        self.bytes += size * cost.out_bytes
        yield self._environment.all_of(carried)
        window.release(turn)  # what has arrived waits for the client in its buffer, not at the server
        yield self._client.serve(size * cost.client_seconds)

    def _carried(self, node: StorageNode, span: int, load: float) -> tuple[simpy.Event, simpy.Event]:
        """It must come through the node's interface and the tenant's own link, at once: the slower one counts.

        Each span has a connection of its own.
        """
        own = self._link.carry(span, 8 * load / self.job.bandwidth_bits_per_s)
        return own, node.uplink.carry((self.number, span), 8 * load / node.bandwidth_bits_per_s)
