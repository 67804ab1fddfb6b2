"""Capturing a module as a graph: torch.export does the tracing, `lower` turns its result into our own nodes."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, default_decompositions, export
from torch.nn.modules import activation
from torch.utils import _pytree as pytree

from hapi.errors import CaptureError, InputError
from hapi.model.checks import ShapeError
from hapi.model.graph import Graph
from hapi.model.lower import Lowering, LoweringError, is_known
from hapi.model.purify import NotPureError, pure_graph
from hapi.model.specs import TensorSpec
from hapi.model.wrappers import bare, scripted

Example: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]"

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
exporting = threading.Lock()
"""torch.export traces with the whole process's state: another thread that exports, or looks at the sizes of what was
exported, would have it fail."""
_LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
_WAY_OUT = (
    "Without a graph it can still run whole, on the client: server=None, or pushdown='none'. To push part of it down, "
    "divide the module with hapi.split(model, at=...) before the part that cannot be captured, or wrap that part away."
)


def capture(module: nn.Module, example: Example, *, name: str | None = None, output: str | int | None = None) -> Graph:
    """The module as a graph with a free batch size, in eval mode.

    `example` is what the module is called with: a tensor (B, ...), a tuple of them, or a mapping from argument names to
    tensors; every tensor has the batch first, and only shapes and dtypes matter. `output` picks one tensor
    from a module that returns several: a key or attribute (`"pooler_output"`) or a position. The graph shares the
    module's parameters and buffers. The module itself is left as it was: training flags, hooks, gradients. What
    torch.compile, DataParallel or DistributedDataParallel put around it, or around a part of it, is looked through.

    Raises CaptureError, naming the model, the reason and the way out, when the control flow depends on data, the batch
    size is fixed in the code, or an operation is not on the allowed list.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"capture: {type(module).__name__} is not a torch.nn.Module. Pass the model itself.")
    with bare(module) as module, exporting:
        title = name or type(module).__name__
        args, kwargs = _at_least_two(title, example)
        exported, graph = _export(title, module, args, kwargs)
        index = _output_index(title, exported, output)
        inputs = {
            key: TensorSpec(tuple(tensor.shape[1:]), tensor.dtype)
            for key, tensor in zip(_input_names(exported), (*args, *kwargs.values()), strict=True)
        }
        try:
            lowered = Lowering(exported, graph, index)
            return Graph(title, inputs, lowered.nodes, lowered.output, lowered.weights, lowered.orders)
        except (LoweringError, ShapeError) as error:
            raise _refusal(title, scripted(module) or str(error)) from error


def _at_least_two(title: str, example: Example) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """The example as arguments with a batch of two or more: with one, export would take sizes of 1 for constants."""
    if isinstance(example, torch.Tensor):
        example = (example,)
    tensors = list(example.values()) if isinstance(example, Mapping) else list(example)
    if not tensors or not all(isinstance(tensor, torch.Tensor) and tensor.dim() for tensor in tensors):
        raise CaptureError(f"{title}: the example must be tensors with the batch as first dimension.")
    if len({tensor.shape[0] for tensor in tensors}) > 1 or tensors[0].shape[0] == 0:
        raise CaptureError(
            f"{title}: the example's tensors have batches of {[tensor.shape[0] for tensor in tensors]}; "
            "give all of them the same one, of at least 1."
        )
    if tensors[0].shape[0] == 1:
        tensors = [tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in tensors]
    tensors = [tensor.detach() for tensor in tensors]
    if isinstance(example, Mapping):
        return (), dict(zip(example, tensors, strict=True))
    return tuple(tensors), {}


def _export(
    title: str, module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> tuple[ExportedProgram, fx.Graph]:
    batch = Dim("batch")
    shapes: Any = {key: {0: batch} for key in kwargs} if kwargs else tuple({0: batch} for _ in args)
    ways: list[Callable[[], AbstractContextManager[None]]] = [nullcontext]
    if any(isinstance(part, _FUSED) for part in module.modules()):
        ways.insert(0, fused_attention)
    with evaluating(module), torch.no_grad(), _hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export warns of its own workings; what matters to a user is raised
        for way in ways:
            try:
                with way():
                    exported = export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
                return _pure(exported)
            except Exception as error:  # export fails in as many ways as models are written
                failure = error
    raise _refusal(title, scripted(module) or _reason(failure)) from failure


def _pure(exported: ExportedProgram) -> tuple[ExportedProgram, fx.Graph]:
    """The program, and its graph with in-place operations made pure: the short way if that will do."""
    try:
        graph = pure_graph(exported.graph)
    except NotPureError:
        exported = _decomposed(exported)
        return exported, exported.graph
    if all(is_known(node.target) for node in graph.nodes if node.op == "call_function"):
        return exported, graph
    exported = _decomposed(exported)
    return exported, exported.graph


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    """The program with in-place operations made pure, and rarer operations taken apart into listed ones.

    An empty table keeps convolutions, norms and attention whole, as eager mode runs them.
    """
    exported = exported.run_decompositions({})
    table: Any = default_decompositions()
    known = dict(table.items())
    while rare := {
        node.target
        for node in exported.graph.nodes
        if node.op == "call_function" and not is_known(node.target) and node.target in known
    }:
        exported = exported.run_decompositions({target: known[target] for target in rare})
        known = {target: how for target, how in known.items() if target not in rare}
    return exported


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the time of the block; afterwards each submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps export's log to itself, on this thread: of what fails it tells pages, and all of it is raised."""
    thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in _LOUD]
    for logger in loggers:
        logger.addFilter(is_of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_others)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Lets PyTorch's attention modules trace the fused kernels that they run in eager mode without gradients.

    They take another path, with other last bits, when they notice that they are being traced.
    """
    notices, overridden = activation._is_make_fx_tracing, torch.overrides.has_torch_function
    activation._is_make_fx_tracing = lambda: False
    torch.overrides.has_torch_function = lambda args: False
    try:
        yield
    finally:
        activation._is_make_fx_tracing, torch.overrides.has_torch_function = notices, overridden


def _input_names(exported: ExportedProgram) -> list[str]:
    return list(exported.graph_signature.user_inputs)


def _output_index(title: str, exported: ExportedProgram, output: str | int | None) -> int:
    """Which of the flat outputs is the backbone's."""
    outputs = list(exported.graph.output_node().args[0])
    spec = exported.call_spec.out_spec
    assert spec is not None
    own = range(len(outputs) - spec.num_leaves, len(outputs))  # before them stands what the module wrote to in place
    result = pytree.tree_unflatten(own, spec)
    if output is None:
        tensors = [index for index in own if isinstance(outputs[index], torch.fx.Node)]
        if len(tensors) == 1:
            return tensors[0]
        raise CaptureError(
            f"{title} returns {len(tensors)} tensors{_choices(result)}, and a backbone gives one. "
            "Say which: capture(..., output='name') or a position, or wrap the module so that it returns one tensor."
        )
    try:
        picked = getattr(result, output) if isinstance(output, str) and hasattr(result, output) else result[output]
    except (KeyError, IndexError, TypeError):
        picked = None
    if not isinstance(picked, int) or not isinstance(outputs[picked], torch.fx.Node):
        raise CaptureError(f"{title} returns no tensor {output!r}{_choices(result)}. Choose one of those.")
    return picked


def _choices(result: Any) -> str:
    if isinstance(result, Mapping):
        return f" ({', '.join(map(repr, result))})"
    return f" (0 to {len(result) - 1})" if isinstance(result, tuple | list) and result else ""


def _refusal(title: str, reason: str) -> CaptureError:
    return CaptureError(f"{title} cannot be captured as a graph: {reason.rstrip('.')}. {_WAY_OUT}")


def _reason(error: Exception) -> str:
    """One line from export's several pages."""
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    kind = type(error).__name__
    if kind in ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException") or (
        "data-dependent" in text
    ):
        first = f"its control flow or a shape depends on the data ({first})"
    elif "Constraints violated" in text or "specialized" in text:
        first = f"its code fixes the batch size ({first})"
    return first[:400]
