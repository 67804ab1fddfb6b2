"""Storage nodes and tenants together: placement by hashing, failures and repairs, and nodes added under load."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import simpy

from benchmarks.simulate.lanes import BATCH, Line, Steps, StorageNode
from benchmarks.simulate.tenants import JobSpec, Load, Tenant

SPREAD = 2_654_435_761
"""Knuth's multiplicative hash (The Art of Computer Programming, vol. 3, 6.4): spreads consecutive numbers."""


@dataclass(frozen=True)
class Failures:
    """Nodes fail and come back, each by itself; both times are exponential."""

    mean_seconds_between: float
    repair_seconds: float


@dataclass(frozen=True)
class Autoscaling:
    """Every `interval_seconds` nodes are added if those there are have worked more than the part `high` of the time,
    and an idle one is removed if less than `low`: device, readers or interface, whichever worked most, in the mean of
    the nodes. A new node serves after `start_seconds`.

    Work that waits would tell little: clients that follow the load ask busy nodes for less.
    """

    most_nodes: int
    interval_seconds: float = 30.0
    start_seconds: float = 60.0
    high: float = 0.7
    low: float = 0.2


@dataclass(frozen=True)
class ClusterSpec:
    """The storage tier. `batch` is how many samples a node's device takes at once, at most."""

    nodes: int
    node_bandwidth_bits_per_s: float = 10e9
    failures: Failures | None = None
    autoscaling: Autoscaling | None = None
    seed: int = 0
    batch: int = BATCH


@dataclass(frozen=True)
class Outcome:
    """What a simulation gave.

    Attributes:
        makespan_seconds: from the first start to the last end.
        slowdowns: per tenant, its time over that with node and link to itself.
        node_hours: of nodes that were up (or starting) until the makespan's end.
        bytes: that left the nodes.
        retries: spans that were asked for again.
        busy: part of the nodes' up time in which their device worked.
        queue_seconds: mean wait of a batch for the device.
        most_nodes: up at the same time.
    """

    makespan_seconds: float
    slowdowns: tuple[float, ...]
    node_hours: float
    bytes: float
    retries: int
    busy: float
    queue_seconds: float
    most_nodes: int


def simulate(cluster: ClusterSpec, jobs: Sequence[JobSpec]) -> Outcome:
    """Runs all jobs to their end. Deterministic for a seed."""
    return _Simulation(cluster, jobs).run()


class _Simulation:
    def __init__(self, cluster: ClusterSpec, jobs: Sequence[JobSpec]) -> None:
        self._spec = cluster
        self._environment = simpy.Environment()
        self._random = random.Random(cluster.seed)
        self._nodes: list[StorageNode] = []
        self._retired: list[StorageNode] = []
        self._started_seconds = 0.0
        self._starting, self._starting_since = 0, 0.0
        """Nodes that do not serve yet, and since when."""
        self._most = 0
        self._load = Load()
        for _ in range(cluster.nodes):
            self._add()
        hosts = {job.host: Line(self._environment) for job in jobs if job.host is not None}
        self._tenants = [
            Tenant(
                self._environment,
                number,
                job,
                self._choose,
                self._load,
                None if job.host is None else hosts[job.host],
            )
            for number, job in enumerate(jobs)
        ]

    def run(self) -> Outcome:
        environment = self._environment
        if self._spec.autoscaling is not None:
            environment.process(self._scale(self._spec.autoscaling))
        environment.run(until=environment.all_of([tenant.process for tenant in self._tenants]))
        nodes = self._nodes + self._retired
        for node in self._nodes:
            node.stop()
        up = sum(node.up_seconds for node in nodes)
        ended = [tenant.finished for tenant in self._tenants if tenant.finished is not None]
        return Outcome(
            makespan_seconds=max(ended) - min(tenant.started for tenant in self._tenants),
            slowdowns=tuple(
                (end - tenant.started) / tenant.job.alone_seconds
                for tenant, end in zip(self._tenants, ended, strict=True)
            ),
            node_hours=(up + self._started_seconds + self._starting * (environment.now - self._starting_since)) / 3600,
            bytes=sum(tenant.bytes for tenant in self._tenants),
            retries=sum(tenant.retries for tenant in self._tenants),
            busy=sum(node.device.busy_seconds for node in nodes) / up if up else 0.0,
            queue_seconds=sum(node.device.waiting_seconds for node in nodes)
            / max(1, sum(node.device.pieces_done for node in nodes)),
            most_nodes=self._most,
        )

    def _add(self) -> None:
        node = StorageNode(
            self._environment,
            len(self._nodes) + len(self._retired),
            self._spec.node_bandwidth_bits_per_s,
            self._spec.batch,
        )
        self._nodes.append(node)
        self._load.nodes_up += 1
        self._most = max(self._most, len(self._nodes))
        if self._spec.failures is not None:
            self._environment.process(self._fail(node, self._spec.failures))

    def _choose(self, tenant: int, span: int, attempt: int) -> StorageNode | None:
        """Spans spread by hash, so that any client finds the same node without asking; the next one if it is down."""
        start = (tenant * SPREAD + span * 40_503) % 2**32
        return next((node for node in self._from(start + attempt) if node.is_up), None)

    def _from(self, start: int) -> Iterator[StorageNode]:
        count = len(self._nodes)
        return (self._nodes[(start + step) % count] for step in range(count))

    def _fail(self, node: StorageNode, failures: Failures) -> Steps:
        while node in self._nodes:
            yield self._environment.timeout(self._random.expovariate(1 / failures.mean_seconds_between))
            if not node.is_up:  # taken away meanwhile
                return
            node.stop()
            self._load.nodes_up -= 1
            yield self._environment.timeout(self._random.expovariate(1 / failures.repair_seconds))
            if node in self._nodes:
                node.start()
                self._load.nodes_up += 1

    def _scale(self, rule: Autoscaling) -> Steps:
        while True:
            before, since = {node: node.worked_seconds for node in self._nodes}, self._environment.now
            yield self._environment.timeout(rule.interval_seconds)
            up = [node for node in before if node.is_up]
            worked = sum(
                max(now - then for now, then in zip(node.worked_seconds, before[node], strict=True)) for node in up
            )
            mean = worked / (self._environment.now - since) / max(1, len(up))
            if mean > rule.high and len(self._nodes) < rule.most_nodes:
                self._starting = min(len(self._nodes), rule.most_nodes - len(self._nodes))  # at most twice as many
                self._starting_since = self._environment.now
                yield self._environment.timeout(rule.start_seconds)
                self._started_seconds += self._starting * rule.start_seconds
                for _ in range(self._starting):
                    self._add()
                self._starting = 0
            elif mean < rule.low and len(self._nodes) > self._spec.nodes:
                idle = next((node for node in reversed(self._nodes) if node.is_up and node.is_idle), None)
                if idle is not None:
                    idle.stop()
                    self._load.nodes_up -= 1
                    self._nodes.remove(idle)
                    self._retired.append(idle)
