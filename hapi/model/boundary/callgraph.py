"""The call graph of a model: its forward pass with whole submodules kept as single calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Value:
    """A place in the graph's list of values: the `position`-th node's result."""

    position: int


class Here:
    """Stands for the device of the tensors the graph is given, wherever the export had baked one in."""


@dataclass(frozen=True)
class Node:
    """One step of the forward pass.

    `kind` is `input`, `state` (a parameter, buffer or constant by name), `call` (a submodule by name), `op` (a
    function) or `output`. A call's `args` are the leaves of its arguments, and `spec` says how they nest. `value` is
    the traced result: a fake tensor, a symbolic or plain number, or None for a structure. `random` tells whether a call
    ran random operators while it was traced.
    """

    kind: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None
    spec: Any = None
    random: bool = False

    @property
    def reads(self) -> tuple[int, ...]:
        """Positions of the values it needs."""
        return tuple(value.position for value in values_in((self.args, self.kwargs)))


@dataclass(frozen=True)
class CallGraph:
    """Nodes in the order in which the model's forward ran; constants that the export made, by name."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Any]


def values_in(structure: Any) -> Iterator[Value]:
    """Every Value inside nested tuples, lists, dicts and slices."""
    if isinstance(structure, Value):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from values_in(item)
    elif isinstance(structure, Mapping):
        yield from values_in(list(structure.values()))
    elif isinstance(structure, slice):
        yield from values_in((structure.start, structure.stop, structure.step))


def replace(structure: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists, dicts and slices with every leaf changed."""
    if isinstance(structure, tuple):
        return tuple(replace(item, change) for item in structure)
    if isinstance(structure, list):
        return [replace(item, change) for item in structure]
    if isinstance(structure, Mapping):
        return {key: replace(item, change) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(replace(item, change) for item in (structure.start, structure.stop, structure.step)))
    return change(structure)


def tensor_leaf(structure: Any, index: int) -> Any:
    """The `index`-th tensor of what a module returned, when that is a structure."""
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)][index]


def rebuild(leaves: Sequence[Any], spec: Any) -> Any:
    """What the model returns (a tuple, a ModelOutput) from its tensors."""
    return pytree.tree_unflatten(list(leaves), spec)
