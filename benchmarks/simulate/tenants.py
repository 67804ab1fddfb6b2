"""One tenant's training job: spans in flight, dealt to the cuts of its plan, served by nodes, carried, finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import simpy

from benchmarks.simulate.lanes import Line, Steps, StorageNode
from compute_client.spans import Dealer
from hapi.plan import INPUT, Plan, Profile

IN_FLIGHT = 4
"""Spans that a client asks for at once (the default of hapi.DataLoader)."""
BATCHES_PER_SPAN = 2
"""A span of 64 samples in batches of 32, the most that a server on a CPU takes at once."""
RETRY_SECONDS = 1.0
"""After this long a client asks another node for what a failed one owed."""


@dataclass(frozen=True)
class JobSpec:
    """What a tenant wants.

    Attributes:
        profile: costs per cut, of the node and of the client.
        plan: the mix of cuts.
        bandwidth_bits_per_s, latency_seconds: its own link.
        samples, epochs, span: per epoch, passes, and samples per request.
        head_seconds: per sample of an epoch whose features are cached on the client; None where nothing is cached.
        start_seconds: when it begins.
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


class Tenant:
    """A job as simulated. `finished` is None until it is; `retries` counts spans that a failed node owed."""

    def __init__(
        self,
        environment: simpy.Environment,
        number: int,
        job: JobSpec,
        choose: Callable[[int, int, int], StorageNode | None],
    ) -> None:
        """`choose(tenant, span, attempt)` names the node to ask; None if none is up."""
        self.number, self.job = number, job
        self.started = job.start_seconds
        self.finished: float | None = None
        self.bytes = 0.0
        self.retries = 0
        self._environment, self._choose = environment, choose
        self._link, self._client = Line(environment), Line(environment)
        self._costs = {cut.name: cut for cut in job.profile.cuts}
        self.process = environment.process(self._run())

    def _run(self) -> Steps:
        environment, job = self._environment, self.job
        yield environment.timeout(job.start_seconds)
        for epoch in range(job.epochs):
            if epoch and job.head_seconds is not None:
                yield self._client.serve(job.samples * job.head_seconds)
                continue
            yield from self._epoch(epoch)
        self.finished = environment.now

    def _epoch(self, epoch: int) -> Steps:
        job, window = self.job, simpy.Resource(self._environment, IN_FLIGHT)
        dealer = Dealer(job.plan.cuts, {share.name: job.span for share in job.plan.cuts})
        count = math.ceil(job.samples / job.span)
        spans = []
        for number in range(count):
            cut, size = dealer.next()
            size = min(size, job.samples - number * job.span)
            dealer.dealt(cut, size)
            turn = window.request()
            yield turn
            spans.append(self._environment.process(self._span(epoch * count + number, cut, size, window, turn)))
        yield self._environment.all_of(spans)

    def _span(
        self, number: int, cut: str, size: int, window: simpy.Resource, turn: simpy.resources.resource.Request
    ) -> Steps:
        cost, attempt = self._costs[cut], 0
        while True:
            yield self._environment.timeout(self.job.latency_seconds)
            node = self._choose(self.number, number, attempt)
            if node is not None and (yield from self._served(node, cut, size * cost.server_seconds)):
                break
            attempt += 1
            self.retries += 1
            yield self._environment.timeout(RETRY_SECONDS)
        load = size * cost.out_bytes
        self.bytes += load
        yield self._carried(node, load)
        window.release(turn)  # what has arrived waits for the client in its buffer, not at the server
        yield self._client.serve(size * cost.client_seconds)

    def _served(self, node: StorageNode, cut: str, seconds: float) -> Generator[simpy.Event, Any, bool]:
        """Whether the node lived to serve it. Batches, not spans, take turns on its device."""
        if cut == INPUT:
            return bool((yield node.readers.submit(self.number, seconds)))
        for _ in range(BATCHES_PER_SPAN):
            if not node.is_up or not (yield node.device.submit(self.number, seconds / BATCHES_PER_SPAN)):
                return False
        return True

    def _carried(self, node: StorageNode, load: float) -> simpy.Event:
        """Through the node's interface and the tenant's own link at once: the slower one is what it takes."""
        own = self._link.serve(8 * load / self.job.bandwidth_bits_per_s)
        return self._environment.all_of([own, node.uplink.serve(8 * load / node.bandwidth_bits_per_s)])
