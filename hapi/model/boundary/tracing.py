"""Tracing a model into its call graph.

`torch.export` gives exact dataflow for any model it can trace, but flattens it to operators and bakes in one of train
or eval mode. Here every submodule that need not be looked into is replaced, while the export runs, by one opaque
operator whose shapes come from the submodule itself. What is left is a short graph: calls of the model's own modules,
and the few operators that its containers apply between them (a flatten, a mean, an addition). Run with the live
modules it behaves as the original in train and in eval mode, on any device.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hapi.errors import CaptureError, InputError
from hapi.model.boundary.callgraph import CallGraph, Here, Node, Value, rebuild, replace, tensor_leaf
from hapi.model.wrappers import scripted

_Run = Callable[[Sequence[Tensor], Sequence[Any]], list[Tensor]]
_running: dict[str, _Run] = {}  # opaque calls of the exports in progress, by key
_serial = itertools.count()
_TENSOR = object()  # holds a tensor's place in a structure

_library = torch.library.Library("hapi", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("call(str key, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")  # type: ignore[no-untyped-call]


@torch.library.register_fake("hapi::call", lib=_library)  # type: ignore[untyped-decorator]
def _shapes_of_call(key: str, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
    outputs = _running[key](tensors, sizes)
    return [torch.empty_like(out) if any(out is given for given in tensors) else out for out in outputs]


def trace(
    model: nn.Module, example: tuple[Tensor, ...], *, expand: frozenset[str], training: Callable[[str], bool]
) -> CallGraph:
    """The call graph of `model`, looking into the modules named in `expand` ('' is the model itself) and no others.

    `example` has at least 2 samples (with one, some models specialise to a batch of one). `training(name)` says which
    modules are in train mode meanwhile; modes and everything else are restored. The caller holds `exporting`, for as
    long as it reads sizes off the graph. Raises CaptureError if torch.export cannot follow the containers' own code.
    """
    calls: dict[str, _Call] = {}
    modes = {module: module.training for module in model.modules()}
    dynamic: Any = tuple({0: torch.export.Dim.AUTO} for _ in example)
    try:
        for name, module in model.named_modules():
            module.training = training(name)
        with _opaque(model, expand, calls):
            shapes = (dynamic,) if _is_variadic(model) else dynamic
            program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:  # torch.export raises many kinds; all of them mean the same to the caller
        if (reason := scripted(model)) is not None:
            raise CaptureError(f"model {type(model).__name__}: it cannot be traced: {reason}.") from error
        raise CaptureError(
            f"model {type(model).__name__}: its forward pass could not be traced on an input of shape "
            f"{tuple(example[0].shape)} ({type(error).__name__}: {first_line(error)}). If the model expects another "
            "input, pass example=, a tensor it accepts; a forward with data-dependent control flow has to be divided "
            "by hand into a backbone and a head."
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return _convert(program, calls)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, bounded."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else "no message"


def callable_children(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Submodules one level down that can be called; lists and dicts of modules count as no level."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if type(child).forward is nn.Module.forward:
            yield from callable_children(child, full)
        else:
            yield full, child


@dataclass
class _Call:
    """How one opaque call was written: its arguments as leaves, and what it returned."""

    name: str
    leaves: list[Any]
    inputs: Any
    outputs: Any = None
    is_tensor: bool = False
    random: bool = False


class _WatchRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator that draws random numbers ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def _opaque(model: nn.Module, expand: frozenset[str], calls: dict[str, _Call]) -> Iterator[None]:
    """While open, every callable child of the modules to look into is one operator."""
    prefix = next(_serial)
    patched: list[tuple[nn.Module, Any]] = []
    named = dict(model.named_modules(remove_duplicate=False))
    seen = {id(named[name]) for name in expand}
    try:
        for parent in sorted(expand):
            for name, module in callable_children(named[parent], parent):
                if id(module) not in seen:
                    seen.add(id(module))
                    patched.append((module, module.__dict__.get("forward")))
                    module.__dict__["forward"] = _recorded(f"{prefix}/{name}", name, module.forward, calls)
        yield
    finally:
        for module, own in patched:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own
        for key in [key for key in _running if key.startswith(f"{prefix}/")]:
            del _running[key]


def _recorded(key: str, name: str, forward: Callable[..., Any], calls: dict[str, _Call]) -> Callable[..., Any]:
    """A forward that writes one opaque operator and remembers how to run the true one."""
    count = itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        this = f"{key}#{next(count)}"
        leaves, spec = pytree.tree_flatten((args, kwargs))
        record = calls[this] = _Call(name, leaves, spec)

        def run(tensors: Sequence[Tensor], sizes: Sequence[Any]) -> list[Tensor]:
            given, numbers = iter(tensors), iter(sizes)
            filled = [
                next(given) if isinstance(leaf, Tensor) else next(numbers) if isinstance(leaf, torch.SymInt) else leaf
                for leaf in leaves
            ]
            positional, named = pytree.tree_unflatten(filled, spec)
            with _WatchRandom() as watch:
                result = forward(*positional, **named)
            record.random |= watch.seen
            record.is_tensor = isinstance(result, Tensor)
            returned, shape = pytree.tree_flatten(result)
            record.outputs = ([_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in returned], shape)
            return [leaf for leaf in returned if isinstance(leaf, Tensor)]

        _running[this] = run
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs = iter(torch.ops.hapi.call(this, tensors, [leaf for leaf in leaves if isinstance(leaf, torch.SymInt)]))
        returned, shape = record.outputs
        return pytree.tree_unflatten([next(outputs) if leaf is _TENSOR else leaf for leaf in returned], shape)

    return call


def _convert(program: Any, calls: dict[str, _Call]) -> CallGraph:
    """Replaces the lifted parameters by names and the opaque operators by calls of modules."""
    lifted = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind.name != "USER_INPUT"
    }
    constants: dict[str, Any] = {}
    nodes: list[Node] = []
    values: dict[Any, Any] = {}
    single: set[Any] = set()  # opaque operators whose module returns one tensor, not a structure

    def look(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return Here()
        return values[leaf] if isinstance(leaf, torch.fx.Node) else leaf

    def add(fx_node: Any, node: Node) -> None:
        values[fx_node] = Value(len(nodes))
        nodes.append(node)

    for fx_node in program.graph.nodes:
        traced = fx_node.meta.get("val")
        if fx_node.op == "placeholder" and fx_node.name not in lifted:
            if isinstance(traced, Tensor):
                add(fx_node, Node("input", fx_node.name, value=traced))
            else:
                values[fx_node] = traced  # an argument that was a plain number or None
        elif fx_node.op == "placeholder":
            name = lifted[fx_node.name]
            if name in program.constants and name not in program.state_dict:
                constants[name] = program.constants[name]
            add(fx_node, Node("state", name, value=traced))
        elif fx_node.op == "get_attr":
            constants[fx_node.target] = operator.attrgetter(fx_node.target)(program.graph_module)
            add(fx_node, Node("state", fx_node.target, value=traced))
        elif fx_node.op == "output":
            leaves, spec = replace(tuple(fx_node.args[0]), look), program.call_spec.out_spec
            if spec != pytree.treespec_leaf():
                nodes.append(Node("op", rebuild, (leaves, spec)))
                leaves = (Value(len(nodes) - 1),)
            nodes.append(Node("output", "output", leaves))
        elif fx_node.target is torch.ops.hapi.call.default:
            call = calls[fx_node.args[0]]
            tensors, sizes = (iter(replace(list(arg), look)) for arg in fx_node.args[1:])
            arguments = tuple(
                next(tensors) if isinstance(leaf, Tensor) else next(sizes) if isinstance(leaf, torch.SymInt) else leaf
                for leaf in call.leaves
            )
            if call.is_tensor:
                single.add(fx_node)
            add(fx_node, Node("call", call.name, arguments, spec=call.inputs, random=call.random))
        elif fx_node.target is operator.getitem and fx_node.args[0] in single:
            position = values[fx_node.args[0]].position
            nodes[position] = with_fields(nodes[position], value=traced)
            values[fx_node] = Value(position)
        elif fx_node.target is operator.getitem and fx_node.args[0].target is torch.ops.hapi.call.default:
            add(fx_node, Node("op", tensor_leaf, replace(tuple(fx_node.args), look), value=traced))
        elif not _is_assertion(fx_node):
            args, kwargs = replace(tuple(fx_node.args), look), replace(dict(fx_node.kwargs), look)
            add(fx_node, Node("op", fx_node.target, args, kwargs, traced))
    return CallGraph(tuple(nodes), constants)


def _is_assertion(fx_node: Any) -> bool:
    return "assert" in getattr(fx_node.target, "__name__", str(fx_node.target)) and not fx_node.users


def _is_variadic(model: nn.Module) -> bool:
    parameters = list(inspect.signature(model.forward).parameters.values())
    return bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
