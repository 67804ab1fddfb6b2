"""From what torch.export gives to nodes of ours: pure operations, sizes affine in the batch, no symbols left."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from hapi.model.node import Argument, Node, Ref, Weight
from hapi.model.ops import ALLOWED, FACTORIES, check_arguments
from hapi.model.specs import Size, memory_order

_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
_PLACEMENT = ("device", "layout", "pin_memory")
_PROBES = (1, 2, 3, 5, 17, 256)
MAX_NAME = 280


class LoweringError(ValueError):
    """Something in the exported program that a graph of ours cannot say."""


class Lowering:
    """Walks an exported program's pure graph once; `nodes`, `output` (a value's name), `weights`, `orders` result."""

    def __init__(self, exported: ExportedProgram, graph: fx.Graph, output_index: int) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.orders: dict[str, tuple[int, ...]] = {}
        self._values: dict[str, Argument | tuple[Argument, ...]] = {}
        self._counts: dict[str, int] = {}
        self._tied: dict[tuple[Any, ...], Weight] = {}
        self._calls = _CallPaths()
        self._exported = exported
        self._batch: Any = None
        specs = iter(exported.graph_signature.input_specs)
        for node in graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, next(specs))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.output = self._output(node.args[0][output_index])
            elif node.op != "get_attr":
                raise LoweringError(f"export left a {node.op!r} of {node.target!r} in the graph")

    def _placeholder(self, node: fx.Node, spec: Any) -> None:
        if spec.kind is InputKind.USER_INPUT:
            self._values[node.name] = Ref(spec.arg.name)
            if isinstance(node.meta["val"], torch.Tensor) and self._batch is None:
                self._batch = node.meta["val"].shape[0]
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = self._exported.state_dict.get(spec.target)
            tensor = self._exported.constants[spec.target] if tensor is None else tensor
            self._values[node.name] = self._weight(spec.target, tensor.detach())

    def _weight(self, target: str, tensor: torch.Tensor) -> Weight:
        """The weight under a name an archive may hold; one that is tied to another is that other."""
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or place not in self._tied:
            name = unique = safe_name(target)
            number = 1
            while unique in self.weights:
                number += 1
                unique = f"{name}_{number}"
            self.weights[unique] = tensor.contiguous()
            self._tied[place] = Weight(unique)
        return self._tied[place]

    def _output(self, node: fx.Node) -> str:
        value = self._values[node.name]
        if not isinstance(value, Ref):
            raise LoweringError("its output does not depend on its input.")
        return value.name

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem:
            source = self._values[str(node.args[0])]
            self._values[node.name] = source[node.args[1]] if isinstance(source, tuple) else source  # type: ignore[index]
        elif isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            self._values[node.name] = self._size(value)
        elif isinstance(node.target, torch._ops.OpOverload):
            if not _is_assertion(node.target):
                self._operation(node, node.target)
        elif not isinstance(value, torch.SymBool | torch.SymFloat | bool | float | type(None)):
            raise LoweringError(f"{node.target} in {_where(node)} is not an ATen operation.")

    def _operation(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        if _changes_nothing(node):
            self._values[node.name] = self._values[str(node.args[0])]
            return
        op, args, kwargs = _plain(
            str(target),
            tuple(self._argument(arg, node) for arg in node.args),
            {key: self._argument(arg, node) for key, arg in node.kwargs.items() if key not in _PLACEMENT},
        )
        if op == _SQUEEZE:  # of one sample it would take the batch away as well
            sizes = enumerate(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
            ones = tuple(dim for dim, size in sizes if isinstance(size, int) and size == 1)
            op, args = _SQUEEZE_DIMS, (args[0], ones)
        result = node.meta["val"]
        if op in FACTORIES:
            kwargs["dtype"] = result.dtype  # not the default dtype of whoever runs it
        if op not in ALLOWED:
            raise LoweringError(f"it uses {op}, in {_where(node)}, which is not on the list of allowed operations.")
        try:
            check_arguments(op, args, kwargs)
        except TypeError as error:
            raise LoweringError(f"in {_where(node)}, {error}.") from error
        stem = op.split(".")[1].strip("_")
        count = self._counts[stem] = self._counts.get(stem, -1) + 1
        name = f"{stem}_{count}"
        single = isinstance(result, torch.Tensor) or op == _BATCH_NORM
        outputs = (name,) if single else tuple(f"{name}.{index}" for index in range(len(result)))
        self._values[node.name] = Ref(name) if single else tuple(Ref(output) for output in outputs)
        # Export knows how the kernels of this device lay out their results; the meta device does not.
        # But it takes the fused layer for one that keeps its input's layout, which its kernels do not.
        laid_out = result if isinstance(result, torch.Tensor) else result[0]
        if single and op != _ENCODER_LAYER and (order := memory_order(laid_out)):
            self.orders[name] = order
        self.nodes.append(Node(name, op, args, kwargs, self._calls.path(node), outputs))

    def _argument(self, value: Any, node: fx.Node) -> Argument:
        if isinstance(value, fx.Node):
            if value.name not in self._values:
                raise LoweringError(f"{node.target} in {_where(node)} uses a number computed from the data.")
            return self._values[value.name]
        if isinstance(value, tuple | list):
            return tuple(self._argument(item, node) for item in value)
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.memory_format):
            return value
        if isinstance(value, torch.device | torch.layout):
            return None
        raise LoweringError(f"{node.target} in {_where(node)} has an argument of type {type(value).__name__}.")

    def _size(self, value: torch.SymInt | int) -> Size | int:
        """A symbolic size as `per_sample * batch + fixed`."""
        if isinstance(value, int):
            return value
        expression, batch = value.node.expr, self._batch.node.expr
        if expression.free_symbols - {batch}:
            raise LoweringError(f"the size {expression} depends on the data.")
        at = {probe: int(expression.subs(batch, probe)) for probe in _PROBES}
        size = Size(at[2] - at[1], 2 * at[1] - at[2])
        if any(size.at(probe) != found for probe, found in at.items()):
            raise LoweringError(f"the size {expression} does not grow in proportion to the batch.")
        return size if size.per_sample else size.fixed


_SQUEEZE, _SQUEEZE_DIMS = "aten.squeeze.default", "aten.squeeze.dims"
_ENCODER_LAYER = "aten._transformer_encoder_layer_fwd.default"
_BATCH_NORM = "aten.batch_norm.default"
_BATCH_NORM_ARGUMENTS = 9
"""The last says whether cuDNN may be used: export notes that it is not there, a GPU that runs the graph has it."""
_NATIVE_BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
_IDENTITIES = frozenset(f"aten.{name}.default" for name in ("alias", "detach", "lift_fresh", "lift_fresh_copy"))
_SAME: Mapping[str, str] = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
    "aten.__and__.Scalar": "aten.bitwise_and.Scalar",
    "aten.__or__.Scalar": "aten.bitwise_or.Scalar",
    "aten.swapaxes.default": "aten.transpose.int",
    "aten.zero.default": "aten.zeros_like.default",
}


def is_known(target: Any) -> bool:
    """Whether lowering can say what this call does."""
    if not isinstance(target, torch._ops.OpOverload) or _is_assertion(target):
        return True
    op = str(target)
    return op in ALLOWED or op in _SAME or op in _IDENTITIES or op in (_NATIVE_BATCH_NORM, "aten.sym_size.int")


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the result is its input over again, layout included (some versions leave a copy for a dropout)."""
    op = str(node.target)
    if op in _IDENTITIES:
        return True
    if op != "aten.clone.default" or node.kwargs.get("memory_format") not in (None, torch.preserve_format):
        return False
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    return value.is_contiguous() or memory_order(value) is not None


def _is_assertion(target: torch._ops.OpOverload) -> bool:
    return target._schema.name.split("::")[1] in _ASSERTIONS


def _plain(
    op: str, args: tuple[Argument, ...], kwargs: dict[str, Argument]
) -> tuple[str, tuple[Argument, ...], dict[str, Argument]]:
    """The same operation in its plainest form, that holds for any memory layout: nothing is written to in a graph."""
    if op == _NATIVE_BATCH_NORM:
        value, weight, bias, mean, variance, momentum, epsilon = args
        # The form that eager mode calls, so that a GPU picks the same kernel.
        return _BATCH_NORM, (value, weight, bias, mean, variance, False, momentum, epsilon, True), kwargs
    if op == _BATCH_NORM and len(args) == _BATCH_NORM_ARGUMENTS:
        return op, (*args[:-1], True), kwargs
    if op == "aten.clone.default" and kwargs.get("memory_format") is torch.contiguous_format:
        return "aten.contiguous.default", args, {}
    return _SAME.get(op, op), args, kwargs


def safe_name(text: str) -> str:
    """A module or parameter path in the characters that names in an archive may have."""
    text = re.sub(r"[^A-Za-z0-9_@.:+-]", "_", text)[:MAX_NAME]
    return re.sub(r"\.(?=\.)", "_", text) or "_"


class _CallPaths:
    """Module paths that tell repeated calls of one module apart: `layer`, `layer@2`, ..."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], list[str]] = {}
        self._latest = ""

    def path(self, node: fx.Node) -> str:
        """The path of the innermost module that made this node; that of the node before for one that has none."""
        stack: Mapping[str, tuple[str, Any]] | None = node.meta.get("nn_module_stack")
        entries = [(key, path) for key, (path, _) in (stack or {}).items() if not key.startswith("_empty")]
        if not entries:
            return self._latest
        parent, parent_path = "", ""
        for key, path in entries:
            path = path.split("@")[0]
            if not path or path == parent_path:
                continue
            relative = path.removeprefix(parent_path + ".") if parent_path else path
            keys = self._keys.setdefault((parent, path), [])
            if key not in keys:
                keys.append(key)
            number = keys.index(key) + 1
            relative = safe_name(relative)
            here = relative if number == 1 else f"{relative}@{number}"
            parent, parent_path = (f"{parent}.{here}" if parent else here), path
        self._latest = parent
        return parent


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return f"{paths[-1]!r}" if paths and paths[-1] else "the model itself"
