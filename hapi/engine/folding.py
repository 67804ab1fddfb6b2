"""A graph with its batch norms folded into the convolutions before them: the same function to float32 rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from hapi.model import Graph
from hapi.model.node import Node, Ref, Weight
from hapi.model.ops import named

CONVOLUTIONS = frozenset({"aten.conv1d.default", "aten.conv2d.default", "aten.conv2d.padding", "aten.conv3d.default"})
BATCH_NORM = "aten.batch_norm.default"


class Kept:
    """What was made from graphs, as long as somebody uses it and the weights are as they were."""

    def __init__(self, make: Callable[[Graph], Graph]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Graph, tuple[tuple[int, ...], ref[Graph]]] = WeakKeyDictionary()
        self._lock = Lock()

    def of(self, graph: Graph) -> Graph:
        with self._lock:
            versions, made = self._made.get(graph, (None, None))
            found = made() if made is not None else None
            if found is None or versions != graph.weight_versions:
                versions, found = graph.weight_versions, self._make(graph)
                self._made[graph] = (versions, ref(found))
            return found


def folded(graph: Graph) -> Graph:
    """The graph with Conv-BN pairs made one convolution each, and weights of 2-d convolutions laid out channels last.

    Values keep their names, so cuts stay what they are: a convolution between which and its norm lies a cut is left
    alone. The result is made once per graph. Jacob et al. 2018, arXiv:1712.05877, eq. 14 is the arithmetic.
    """
    return _FOLDED.of(graph)


def _fold(graph: Graph) -> Graph:
    readers = Counter(name for node in graph.nodes for name in node.refs())
    carried = {name for cut in graph.cuts for name in cut.values}
    weights = dict(graph.weights)
    makers: dict[str, Node] = {node.name: node for node in graph.nodes}
    replaced: dict[str, Node | None] = {}
    for norm in graph.nodes:
        if norm.op != BATCH_NORM or not isinstance(norm.args[0], Ref):
            continue
        source = norm.args[0].name
        convolution = makers.get(source)
        if (
            convolution is None
            or convolution.op not in CONVOLUTIONS
            or readers[source] != 1
            or source in carried
            or not (fused := _fuse(convolution, norm, weights))
        ):
            continue
        replaced[source], replaced[norm.name] = None, fused
    nodes = [new for node in graph.nodes if (new := replaced.get(node.name, node)) is not None]
    for node in nodes:
        if node.op.startswith("aten.conv2d") and isinstance(weight := node.args[1], Weight):
            weights[weight.name] = weights[weight.name].contiguous(memory_format=torch.channels_last)
    return Graph(graph.name, dict(zip(graph.input_names, graph.inputs, strict=True)), nodes, graph.output_name, weights)


def _fuse(convolution: Node, norm: Node, weights: dict[str, torch.Tensor]) -> Node | None:
    """One convolution for the two, its weights added to `weights`; None if one of its weights is computed."""
    conv, said = _arguments(convolution, weights), _arguments(norm, weights)
    if not all(isinstance(conv.get(name), torch.Tensor | None) for name in ("weight", "bias")) or not all(
        isinstance(said.get(name), torch.Tensor | None) for name in ("weight", "bias", "running_mean", "running_var")
    ):
        return None
    kernel, mean, variance = conv["weight"], said["running_mean"], said["running_var"]
    if kernel is None or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance.double() + said["eps"])
    if said.get("weight") is not None:
        scale = scale * said["weight"].double()
    shift = -mean.double()
    if conv.get("bias") is not None:
        shift = shift + conv["bias"].double()
    shift = shift * scale
    if said.get("bias") is not None:
        shift = shift + said["bias"].double()
    name = f"{norm.name}.folded"
    weights[f"{name}.weight"] = (kernel.double() * scale.reshape(-1, *[1] * (kernel.dim() - 1))).to(kernel.dtype)
    weights[f"{name}.bias"] = shift.to(kernel.dtype)
    args = (convolution.args[0], Weight(f"{name}.weight"), Weight(f"{name}.bias"), *convolution.args[3:])
    kwargs = {key: value for key, value in convolution.kwargs.items() if key not in ("weight", "bias")}
    return replace(convolution, name=norm.name, args=args, kwargs=kwargs, outputs=norm.outputs)


def _arguments(node: Node, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments by name, weights as tensors."""
    given = named(node.op, node.args, node.kwargs)
    return {key: weights[value.name] if isinstance(value, Weight) else value for key, value in given.items()}


_FOLDED = Kept(_fold)
