"""Calling one node: its arguments filled in with tensors, weights and sizes. The only place where operations run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hapi.model.indices import READERS, check_indices
from hapi.model.node import Argument, Node, Ref, Weight, leaves, substitute
from hapi.model.ops import resolve, takes_device
from hapi.model.specs import Size


class Call:
    """A node made ready to run many times: constant arguments are prepared once, the others filled in per call."""

    def __init__(self, node: Node, device: torch.device, *, is_constant: bool = False) -> None:
        """`is_constant`: what it reads is the same in every call, and is checked in the first only."""
        self.node = node
        self._is_constant = is_constant
        self._checks_indices = node.op in READERS
        self._operation = resolve(node.op)
        self._args, self._open_args = _prepare(dict(enumerate(node.args)))
        self._kwargs, self._open_kwargs = _prepare(dict(node.kwargs))
        if takes_device(node.op):
            self._kwargs["device"] = device

    def __call__(
        self, values: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], batch: int
    ) -> tuple[torch.Tensor, ...]:
        """Runs the operation; always a tuple of results, one per name in `node.outputs`."""

        def leaf(argument: Argument) -> Any:
            if isinstance(argument, Ref):
                return values[argument.name]
            if isinstance(argument, Weight):
                return weights[argument.name]
            return argument.at(batch) if isinstance(argument, Size) else argument

        args, kwargs = self._args, self._kwargs
        if self._open_args:
            args = args | {key: substitute(argument, leaf) for key, argument in self._open_args.items()}
        if self._open_kwargs:
            kwargs = kwargs | {key: substitute(argument, leaf) for key, argument in self._open_kwargs.items()}
        if self._checks_indices:
            check_indices(self.node, list(args.values()), kwargs)
            self._checks_indices = not self._is_constant
        result = self._operation(*args.values(), **kwargs)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _prepare(arguments: Mapping[Any, Argument]) -> tuple[dict[Any, Any], dict[Any, Argument]]:
    """Arguments as ATen takes them, and those among them that are only known when running (in their places)."""
    still_open = {
        key: argument
        for key, argument in arguments.items()
        if any(isinstance(leaf, Ref | Weight | Size) for leaf in leaves(argument))
    }
    identity: Callable[[Argument], Any] = lambda leaf: leaf  # noqa: E731
    ready = {key: None if key in still_open else substitute(arg, identity) for key, arg in arguments.items()}
    return ready, still_open
