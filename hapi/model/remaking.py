"""What a suffix makes again instead of having it shipped: values that little work makes from the graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hapi.model.node import Node
from hapi.model.ops import CHEAP
from hapi.model.specs import ValueSpec

MAX_REMADE_BYTES = 8 * 2**20
"""Bytes that a suffix may write per sample to make a value again from the inputs rather than have it shipped."""


class Remaking:
    """Which values a suffix can make again from the graph's inputs with little work, and from what it is cheapest."""

    def __init__(self, inputs: Sequence[str], nodes: Sequence[Node], specs: Mapping[str, ValueSpec]) -> None:
        self._specs = specs
        self._sources: dict[str, tuple[str, ...]] = dict.fromkeys(inputs, ())
        self._roots: dict[str, frozenset[str]] = {name: frozenset([name]) for name in inputs}
        self._work: dict[str, int] = dict.fromkeys(inputs, 0)
        self._memo: dict[frozenset[str], frozenset[str] | None] = {}
        self.order = {name: -1 - index for index, name in enumerate(reversed(inputs))}
        reached = set(inputs)
        for position, node in enumerate(nodes):
            sources = tuple(dict.fromkeys(name for name in node.refs() if name in reached))
            reached.update(node.outputs)
            self.order.update(dict.fromkeys(node.outputs, position))
            if node.op not in CHEAP or not all(name in self._work for name in sources):
                continue
            work = sum(self._work[name] for name in sources) + sum(
                specs[name].bytes_per_sample for name in node.outputs
            )
            if work <= MAX_REMADE_BYTES:
                self._sources.update(dict.fromkeys(node.outputs, sources))
                roots: frozenset[str] = frozenset().union(*(self._roots[name] for name in sources))
                self._roots.update(dict.fromkeys(node.outputs, roots))
                self._work.update(dict.fromkeys(node.outputs, work))

    def can(self, name: str) -> bool:
        return name in self._work

    def is_small(self, name: str) -> bool:
        """Whether a value that can be made again is an input, or less than the inputs that it is made from."""
        roots = self._roots[name]
        return name in roots or self._specs[name].bytes_per_sample < sum(self._specs[r].bytes_per_sample for r in roots)

    def cheapest(self, wanted: frozenset[str]) -> frozenset[str] | None:
        """The values to carry, fewest bytes first, from which all wanted ones can be made; None if none will do."""
        if wanted not in self._memo:
            apart: frozenset[str] | None = frozenset()
            for name in sorted(wanted, key=self.order.__getitem__):
                found = self._walk_back(frozenset([name]), apart or frozenset())
                apart = None if apart is None or found is None else apart | found
            choices = [choice for choice in (apart, self._walk_back(wanted, frozenset())) if choice is not None]
            self._memo[wanted] = min(choices, key=self._cost, default=None)
        return self._memo[wanted]

    def _walk_back(self, wanted: frozenset[str], carried: frozenset[str]) -> frozenset[str] | None:
        """The best of what there was to carry after each earlier step, with what is carried anyway for nothing."""
        best = None
        frontier = wanted
        while True:
            if all(self._specs[name].is_batched for name in frontier) and (
                best is None or self._cost(frontier - carried) < self._cost(best - carried)
            ):
                best = frontier
            latest = max(frontier, key=self.order.__getitem__, default=None)
            if latest is None or self.order[latest] < 0:
                return best
            frontier = (frontier - {latest}) | set(self._sources[latest])

    def _cost(self, carried: frozenset[str]) -> tuple[int, int]:
        return sum(self._specs[name].per_sample.bytes for name in carried), len(carried)
