"""The steps of a part: its share of a call graph, ready to run."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any

import torch

from hapi.model.boundary.callgraph import Node, Value, replace
from hapi.model.boundary.wiring import Wiring


@dataclass(frozen=True)
class Step:
    """One step of a part: a callgraph.Node with positions counted within the part; `forget`: values not read again."""

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    spec: Any
    forget: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by name the operators of torch, which do not pickle themselves."""
        target = str(self.target) if isinstance(self.target, torch._ops.OpOverload) else self.target
        return _restore, (self.kind, target, self.args, self.kwargs, self.spec, self.forget)


def _restore(kind: str, target: Any, *rest: Any) -> Step:
    if kind == "op" and isinstance(target, str):
        target = operator.attrgetter(target)(torch.ops)
    return Step(kind, target, *rest)


def prefix_steps(wiring: Wiring, position: int) -> list[Step]:
    """What computes the tensor that crosses `position` from the model's inputs."""
    result = wiring.crossing_tensor(position)
    assert result is not None
    moving = [i for i in wiring.moving if i <= position or wiring.nodes[i].kind == "input"]
    chosen = sorted(_with_reads(wiring, moving))
    nodes = [(i, wiring.nodes[i]) for i in chosen]
    return _steps([*nodes, (len(wiring.nodes), Node("output", "output", (Value(result),)))])


def head_steps(wiring: Wiring, position: int) -> list[Step]:
    """What computes the model's result from the tensor that crosses `position`."""
    features = wiring.crossing_tensor(position)
    assert features is not None
    moving = [i for i in range(position + 1, len(wiring.nodes)) if i in set(wiring.moving)]
    ends = len(wiring.nodes) - 1
    chosen = sorted(_with_reads(wiring, [*moving, ends], stop=features))
    nodes = [(features, Node("input", "features"))]
    for i in chosen:
        node = wiring.nodes[i]
        if wiring.is_batch_size(node):
            node = with_fields(node, args=(Value(features), 0), kwargs={})
        if i != features:
            nodes.append((i, node))
    return _steps(nodes)


def whole_steps(wiring: Wiring) -> list[Step]:
    """What computes the model's result from the model's inputs."""
    ends = len(wiring.nodes) - 1
    chosen = sorted(_with_reads(wiring, [*wiring.moving, ends]))
    return _steps([(i, wiring.nodes[i]) for i in chosen])


def _with_reads(wiring: Wiring, positions: Sequence[int], stop: int | None = None) -> set[int]:
    """The positions and all that they need, down to `stop` and to batch sizes."""
    chosen: set[int] = set()
    waiting = list(positions)
    while waiting:
        position = waiting.pop()
        if position in chosen or position == stop:
            continue
        chosen.add(position)
        node = wiring.nodes[position]
        if not (stop is not None and wiring.is_batch_size(node)):
            waiting.extend(node.reads)
    return chosen


def _steps(nodes: Sequence[tuple[int, Node]]) -> list[Step]:
    renumbered = {position: number for number, (position, _) in enumerate(nodes)}

    def move(leaf: Any) -> Any:
        return Value(renumbered[leaf.position]) if isinstance(leaf, Value) else leaf

    last_use: dict[int, int] = {}
    for number, (_, node) in enumerate(nodes):
        for read in node.reads:
            last_use[renumbered[read]] = number
    return [
        Step(
            node.kind,
            node.target,
            replace(node.args, move),
            replace(dict(node.kwargs), move),
            node.spec,
            tuple(sorted(value for value, use in last_use.items() if use == number)),
        )
        for number, (_, node) in enumerate(nodes)
    ]
