"""The words of a captured graph: nodes, and the arguments that nodes take. Data only; nothing here can execute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from hapi.model.specs import Size


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an earlier value: a graph input, or an output of an earlier node."""

    name: str


@dataclass(frozen=True, slots=True)
class Weight:
    """A reference to a parameter, buffer or constant tensor of the graph."""

    name: str


Argument: TypeAlias = (
    bool | int | float | str | torch.dtype | torch.memory_format | Size | Ref | Weight | tuple["Argument", ...] | None
)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: a pure ATen overload, its arguments, and the names of the values it makes.

    `module` is the path of the module that called it (`layer1.0.conv1`, empty for the outermost), with `@2`, `@3`...
    after a module that had been called before. `outputs` names its results: the node's own name for a single tensor,
    `name.0`, `name.1`... for an operation that gives several.
    """

    name: str
    op: str
    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    module: str = ""
    outputs: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """`aten.conv2d.default (conv2d_3, in layer1.0.conv1)`, for messages."""
        return f"{self.op} ({self.name}, in {self.module or 'the model itself'})"

    def refs(self) -> Iterator[str]:
        """Names of the values it reads, in argument order, repeats included."""
        yield from (leaf.name for leaf in self._leaves() if isinstance(leaf, Ref))

    def weights(self) -> Iterator[str]:
        """Names of the weights it reads."""
        yield from (leaf.name for leaf in self._leaves() if isinstance(leaf, Weight))

    def _leaves(self) -> Iterator[Argument]:
        for argument in (*self.args, *self.kwargs.values()):
            yield from leaves(argument)


def leaves(argument: Argument) -> Iterator[Argument]:
    """Every argument that is not a sequence, depth first."""
    if isinstance(argument, tuple):
        for item in argument:
            yield from leaves(item)
    else:
        yield argument


def substitute(argument: Argument, leaf: Callable[[Argument], Any]) -> Any:
    """The argument with `leaf` applied to everything that is not a sequence; sequences become lists, as ATen likes."""
    if isinstance(argument, tuple):
        return [substitute(item, leaf) for item in argument]
    return leaf(argument)
