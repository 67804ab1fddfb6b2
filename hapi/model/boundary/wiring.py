"""Reading a call graph: what depends on parameters, what crosses a position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hapi.model.boundary.callgraph import CallGraph, Node, Value, replace, tensor_leaf

_SIZE = torch.ops.aten.sym_size.int


class Wiring:
    """A call graph with what the search for a boundary asks of it. Positions are indices of `nodes`.

    A node is *static* when it follows from parameters and constants alone, and a *size* when it is a number from the
    batch size; either part computes these for itself. All others are *moving*: they carry data of the samples.
    """

    def __init__(self, model: nn.Module, graph: CallGraph) -> None:
        self.model = model
        self.model_name = type(model).__name__
        self.graph = graph
        self.nodes = graph.nodes
        self._static: set[int] = set()
        self._sizes: set[int] = set()
        for position, node in enumerate(self.nodes):
            if node.kind == "state" or (node.kind == "op" and not _is_random_op(node) and self._all_static(node)):
                self._static.add(position)
            elif node.kind == "op" and (self.is_batch_size(node) or self._follows_from_sizes(node)):
                self._sizes.add(position)

    # -- kinds of nodes --

    def _all_static(self, node: Node) -> bool:
        return all(read in self._static for read in node.reads)

    def is_batch_size(self, node: Node) -> bool:
        """Whether a node reads the number of samples off a tensor."""
        return node.target is _SIZE and str(node.value) == self._batch

    def _follows_from_sizes(self, node: Node) -> bool:
        return all(read in self._static or read in self._sizes for read in node.reads)

    @cached_property
    def _batch(self) -> str:
        inputs = [node for node in self.nodes if node.kind == "input"]
        return str(inputs[0].value.shape[0]) if inputs else ""

    @cached_property
    def moving(self) -> list[int]:
        """Positions of the nodes that carry data, in order, the output excepted."""
        recomputed = self._static | self._sizes
        return [i for i, node in enumerate(self.nodes) if i not in recomputed and node.kind != "output"]

    @cached_property
    def call_names(self) -> list[str]:
        return [node.target for node in self.nodes if node.kind == "call"]

    @cached_property
    def state(self) -> dict[str, Any]:
        """Parameters, buffers and constants that nodes read directly, by name."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        named.update(self.model.named_buffers(remove_duplicate=False))  # type: ignore[arg-type]
        return {
            node.target: self.graph.constants[node.target]
            if node.target in self.graph.constants
            else named[node.target]
            for node in self.nodes
            if node.kind == "state"
        }

    def parameters_of(self, node: Node) -> list[nn.Parameter]:
        """The parameters that a node uses: its module's, or those an operator reads, also through static values."""
        if node.kind == "call":
            return list(self.model.get_submodule(node.target).parameters())
        if node.kind == "state":
            value = self.state[node.target]
            return [value] if isinstance(value, nn.Parameter) else []
        return [p for read in node.reads if read in self._static for p in self.parameters_of(self.nodes[read])]

    def first_trainable(self) -> int:
        """Position of the first node with a trainable parameter; behind all nodes if the forward uses none."""
        for position in self.moving:
            if any(p.requires_grad for p in self.parameters_of(self.nodes[position])):
                return position
        return len(self.nodes) - 1

    def first_trainable_name(self, position: int) -> str:
        used = [p for p in self.parameters_of(self.nodes[position]) if p.requires_grad]
        names = [name for name, p in self.model.named_parameters() if any(p is q for q in used)]
        return names[0] if names else "none is used in the forward pass"

    def random_calls(self) -> set[tuple[str, int]]:
        """(module, how many-th call of it) of the calls that did something random when this graph was traced."""
        return {self.identity(i) for i, node in enumerate(self.nodes) if node.kind == "call" and node.random}

    def is_random(self, position: int, random_calls: set[tuple[str, int]]) -> bool:
        node = self.nodes[position]
        return self.identity(position) in random_calls if node.kind == "call" else _is_random_op(node)

    def identity(self, position: int) -> tuple[str, int]:
        """(module, how many-th call of it) of the call at a position."""
        name = self.nodes[position].target
        return name, sum(1 for node in self.nodes[:position] if node.kind == "call" and node.target == name)

    def ends_of(self, name: str) -> list[int]:
        """For each call of a module, the position after which all it returned has been unpacked."""
        ends = []
        for position, node in enumerate(self.nodes):
            if node.kind == "call" and node.target == name:
                end = position
                for later in range(position + 1, len(self.nodes)):
                    if self.nodes[later].target is tensor_leaf and Value(position) in self.nodes[later].args:
                        end = later
                ends.append(end)
        return ends

    # -- what crosses --

    def crossing(self, position: int) -> list[int]:
        """Positions up to `position` whose data is read after it."""
        recomputed = self._static | self._sizes
        live = {
            read
            for later in range(position + 1, len(self.nodes))
            if later not in recomputed
            for read in self.nodes[later].reads
            if read <= position and read not in recomputed
        }
        return sorted(live)

    def crossing_tensor(self, position: int) -> int | None:
        """The one value that crosses, if it is a tensor of floats with the samples first; None otherwise."""
        crossing = self.crossing(position)
        value = self.nodes[crossing[0]].value if len(crossing) == 1 else None
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 1:
            return None
        return crossing[0] if str(value.shape[0]) == self._batch and self.nodes[crossing[0]].kind != "input" else None

    def describe(self, crossing: Sequence[int]) -> str:
        """What crosses a position, in words."""
        words = []
        for position in crossing:
            node = self.nodes[position]
            shape = tuple(node.value.shape[1:]) if isinstance(node.value, Tensor) else "a structure"
            source = self.nodes[node.args[0].position] if node.target is tensor_leaf else node
            origin = "the input" if source.kind == "input" else str(source.target)
            words.append(f"{origin} {shape}")
        return f"{len(crossing)} values cross it ({', '.join(words)})"

    def signature(self, position: int) -> tuple[Any, ...]:
        """What a node does, without where its inputs come from."""
        node = self.nodes[position]
        return node.kind, str(node.target), repr(replace((node.args, dict(node.kwargs)), _blank))


def same_place(wiring: Wiring, position: int, other: Wiring) -> int | None:
    """The position in `other`, another trace of the same model, that corresponds to `position`; None if there is none.

    Found from the last call of a module before it, and the operators in between, which must be the same in both.
    """
    trail = [i for i in wiring.moving if i <= position]
    start = max((n for n, i in enumerate(trail) if wiring.nodes[i].kind == "call"), default=-1)
    steps = list(other.moving)
    if start >= 0:
        wanted = wiring.identity(trail[start])
        matches = [n for n, i in enumerate(steps) if other.nodes[i].kind == "call" and other.identity(i) == wanted]
        if not matches:
            return None
        steps = steps[matches[0] + 1 :]
        here = other.moving[matches[0]]
    else:
        here = -1
    for i in trail[start + 1 :]:
        if not steps or other.signature(steps[0]) != wiring.signature(i):
            return None
        here = steps.pop(0)
    return here


def _blank(leaf: Any) -> Any:
    return "value" if isinstance(leaf, Value) else type(leaf).__name__ if isinstance(leaf, torch.Tensor) else leaf


def _is_random_op(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
