"""Numeric modes: float32, exact to its rounding, and bf16 where the processor or GPU computes in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from hapi.engine.folding import CONVOLUTIONS, Kept, folded
from hapi.errors import InputError
from hapi.model import Graph, Program, TensorSpec
from hapi.model.node import Argument, Node, Ref, Weight

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
TOLERANCE: Mapping[Precision, float] = {"float32": 1e-5, "bf16": 1e-2}
"""Most that a compiled program may differ from eager float32: largest difference over the output's largest value.

See `hapi.engine.agreement.allowed` for networks that are further off in bf16 however they are run.
"""

ADD, LAYER_NORM = "aten.add.Tensor", "aten.layer_norm.default"
PRODUCTS = CONVOLUTIONS | {"aten.linear.default"}
MOVES = frozenset(
    f"aten.{name}" for name in ("reshape.default", "view.default", "flatten.using_ints", "permute.default",
                                "transpose.int", "cat.default")
)  # fmt: skip
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}
"""Processor flags, x86 and ARM, of machines that multiply in bfloat16."""
_LARGEST = torch.finfo(torch.bfloat16).max


def check_precision(precision: str, device: torch.device | str) -> None:
    """InputError for an unknown precision, or for bf16 on a device that would only emulate it, slower than float32."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known. Choose one of {', '.join(PRECISIONS)}.")
    if precision == "bf16" and not has_bf16(str(device)):
        raise InputError(
            f"precision 'bf16': {device} of this machine does not compute in bfloat16 (AVX512_BF16, AMX or a GPU that "
            "does), and emulating it is slower than float32. Use precision='float32'."
        )


def exact_sums() -> None:
    """Sums are float32 in this process: CUDA's TF32, and sums of bfloat16 in bfloat16, are on unless turned off."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@cache
def has_bf16(device: str) -> bool:
    """Whether a device computes natively in bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(processor_flags() & _NATIVE)


@cache
def processor_flags(source: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the first processor says it can do; nothing where the system does not tell."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))),
        frozenset(),
    )


def in_bf16(graph: Graph) -> Graph:
    """The folded graph with everything that depends on its inputs in bfloat16, weights converted once.

    Values keep their names. What depends on weights and sizes alone (position indices, masks) is computed in float32
    and rounded where it is used, and so are the sums that layer norms read, see `_stream`. Made once per graph.
    """
    return _IN_BF16.of(graph)


def as_run(graph: Graph, precision: Precision) -> Graph:
    """The graph as the engine runs it from the first call on: folded, and in bfloat16 if that is the precision."""
    return folded(graph) if precision == "float32" else in_bf16(graph)


def rewritten(program: Program, precision: Precision) -> Program:
    """The same part of the graph, folded, and in bfloat16 if that is the precision; runs without a compiler."""
    graph = as_run(program.graph, precision)
    return Program(
        graph, program.title, program.input_names, program.output_names, is_single=program.is_single,
        device=program.device,
    )  # fmt: skip


class _Rounding:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._reached = set(graph.input_names)
        self._stream = _stream(graph)
        self._weights = dict(graph.weights)
        self._nodes: list[Node] = []
        self._rounded: dict[str, str] = {}
        for node in graph.nodes:
            self._add(node)
        inputs = {
            name: spec if name in self._stream else _rounded_spec(spec)
            for name, spec in zip(graph.input_names, graph.inputs, strict=True)
        }
        self.graph = Graph(graph.name, inputs, self._nodes, graph.output_name, self._weights)

    def _add(self, node: Node) -> None:
        if self._reached.isdisjoint(node.refs()):
            self._nodes.append(_with(node, _within_range))
            return
        self._reached.update(node.outputs)
        self._nodes.append(self._widened(node) if node.name in self._stream else _with(node, self._argument))

    def _argument(self, argument: Argument) -> Argument:
        if isinstance(argument, Weight) and self._weights[argument.name].dtype == torch.float32:
            name = f"{argument.name}@bf16"
            weight = self._weights[argument.name]
            self._weights[name] = weight.to(torch.bfloat16)  # keeps the layout in memory
            return Weight(name)
        if isinstance(argument, Ref) and (argument.name not in self._reached or argument.name in self._stream):
            return self._round(argument)
        return torch.bfloat16 if argument is torch.float32 else _within_range(argument)

    def _round(self, argument: Ref) -> Ref:
        if self._graph.specs[argument.name].dtype != torch.float32:
            return argument
        if argument.name not in self._rounded:
            self._rounded[argument.name] = self._copied(argument, f"{argument.name}@bf16", torch.bfloat16)
        return Ref(self._rounded[argument.name])

    def _widened(self, node: Node) -> Node:
        """The node in float32: PyTorch adds in the wider of two types, so one of them must be float32, and no single
        number, whose type does not count beside a tensor's."""
        is_rounded = all(name in self._reached and name not in self._stream for name in node.refs())
        is_wide = any(self._weights[name].dim() for name in node.weights())
        read = next((argument for argument in node.args if isinstance(argument, Ref)), None)
        if not is_rounded or is_wide or read is None:
            return node
        wide, place = Ref(self._copied(read, f"{node.name}@float32", torch.float32)), node.args.index(read)
        return replace(node, args=(*node.args[:place], wide, *node.args[place + 1 :]))

    def _copied(self, argument: Ref, name: str, dtype: torch.dtype) -> str:
        self._nodes.append(Node(name, "aten._to_copy.default", (argument,), {"dtype": dtype}, "", (name,)))
        return name


def _stream(graph: Graph) -> set[str]:
    """What stays in float32 of a network with layer norms: the sums that these read, the sums before those, what the
    norms make of them, and where such a sum begins with an input, the one product that was made of it.

    The layers of a transformer add to one value, from the first to the last. Rounded after each, it loses a part of
    what they added: bf16 features of vit_b_16 were off by 1.5e-2 of the largest, and are by 1.0e-2 so. Neither the
    additions nor the norms would be faster in bfloat16, and the first product is a small one.
    """
    nodes = {node.name: node for node in graph.nodes if graph.specs[node.outputs[0]].dtype == torch.float32}
    sums = {name for name, node in nodes.items() if node.op == ADD}
    norms = {name: next(node.refs(), "") for name, node in nodes.items() if node.op == LAYER_NORM}
    beginnings = _beginnings(graph)
    stream: set[str] = set()
    rest = [name for name in norms.values() if name in sums]
    while rest:
        name = rest.pop()
        if name not in stream:
            stream.add(name)
            before = nodes[name].refs() if name in nodes else ()
            rest += [value for value in before if value in sums or value in beginnings]
    return stream | {name for name, read in norms.items() if read in stream}


def _beginnings(graph: Graph) -> set[str]:
    """The inputs, products of them, and what these become by being moved and joined."""
    inputs = {name for name, spec in zip(graph.input_names, graph.inputs, strict=True) if spec.dtype == torch.float32}
    products: set[str] = set()
    for node in graph.nodes:
        read = inputs if node.op in PRODUCTS else products if node.op in MOVES else ()
        if any(name in read for name in node.refs()):
            products.add(node.name)
    return inputs | products


def _with(node: Node, change: Any) -> Node:
    def every(argument: Argument) -> Argument:
        return tuple(every(item) for item in argument) if isinstance(argument, tuple) else change(argument)

    return replace(
        node,
        args=tuple(every(argument) for argument in node.args),
        kwargs={key: every(argument) for key, argument in node.kwargs.items()},
    )


def _within_range(argument: Argument) -> Argument:
    """'The most negative float32', with which masks are written, would become minus infinity."""
    is_beyond = isinstance(argument, float) and _LARGEST < abs(argument) < float("inf")
    return (_LARGEST if argument > 0 else -_LARGEST) if is_beyond else argument  # type: ignore[operator]


def _rounded_spec(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.shape, torch.bfloat16) if spec.dtype == torch.float32 else spec


_IN_BF16 = Kept(lambda graph: _Rounding(folded(graph)).graph)
