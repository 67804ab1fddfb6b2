"""A program as a module that PyTorch's compiler takes: an FX graph of the same operations, with weights as buffers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from hapi.engine.attention import PLAIN
from hapi.model import Program
from hapi.model.node import Argument, Ref, Weight, substitute
from hapi.model.ops import resolve, takes_device
from hapi.model.specs import Size

LARGEST_BATCH = 65535
"""On a GPU: for larger ones cuDNN has no batch norm, and a program would have to be exported once more."""


def as_module(program: Program) -> fx.GraphModule:
    """Takes the program's tensors (B, ...) with any batch, and gives the tuple of its outputs.

    Kernels that PyTorch runs whole are taken apart (see `attention`), so the last bits may differ.
    """
    root = nn.Module()
    graph = fx.Graph()
    values = {name: graph.placeholder(f"input_{place}") for place, name in enumerate(program.input_names)}
    weights: dict[str, fx.Node] = {}
    batch: list[fx.Node] = []

    def size(argument: Size) -> Any:
        if not batch:
            batch.append(graph.call_function(torch.ops.aten.sym_size.int, (values[program.input_names[0]], 0)))
        scaled = (
            graph.call_function(operator.mul, (batch[0], argument.per_sample)) if argument.per_sample != 1 else batch[0]
        )
        return graph.call_function(operator.add, (scaled, argument.fixed)) if argument.fixed else scaled

    def leaf(argument: Argument) -> Any:
        if isinstance(argument, Ref):
            return values[argument.name]
        if isinstance(argument, Weight):
            if argument.name not in weights:
                key = f"weight_{len(weights)}"
                root.register_buffer(key, program.weights[argument.name])
                weights[argument.name] = graph.get_attr(key)
            return weights[argument.name]
        return size(argument) if isinstance(argument, Size) else argument

    # The batch is read once, before anything else: an FX graph must define what it uses.
    for node in program.nodes:
        args = tuple(substitute(argument, leaf) for argument in node.args)
        kwargs = {key: substitute(argument, leaf) for key, argument in node.kwargs.items()}
        if takes_device(node.op):
            kwargs["device"] = program.device
        operation: Callable[..., Any] = PLAIN.get(node.op) or resolve(node.op)
        result = graph.call_function(operation, args, kwargs)
        if node.outputs == (node.name,):
            values[node.name] = result
        else:
            for place, name in enumerate(node.outputs):
                values[name] = graph.call_function(operator.getitem, (result, place))
    graph.output(tuple(values[name] for name in program.output_names))
    return fx.GraphModule(root, graph, class_name="Program").eval()
