"""Shapes without running: the graph is walked on PyTorch's meta device, which computes shapes and allocates nothing.

Every spec a graph has is derived here, after capture and again after loading, so that an archive has no shapes to
lie about. Sizes are read at three batch sizes and must be affine in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hapi.model.calls import Call
from hapi.model.node import Node, Ref, Weight
from hapi.model.ops import MANY_VIEWS
from hapi.model.specs import Size, TensorSpec, ValueSpec, in_order

BATCHES = (2, 3, 7)
META = torch.device("meta")


class ShapeError(ValueError):
    """A node that cannot run on the shapes it would be given, or whose result is out of bounds."""


@dataclass(frozen=True, slots=True)
class ShapeLimits:
    """How large a value may become before anything is allocated for it."""

    bytes_per_sample: int = 4 * 2**30
    """Bytes of any one value, at a batch of one."""
    dimensions: int = 12
    results: int = 1024
    """Results of one node (of a split or unbind)."""


def infer(
    inputs: Mapping[str, TensorSpec],
    weights: Mapping[str, torch.Tensor],
    nodes: Sequence[Node],
    orders: Mapping[str, tuple[int, ...]],
    limits: ShapeLimits | None = None,
) -> dict[str, ValueSpec]:
    """The spec of every value, inputs included; raises ShapeError naming the node that does not work.

    `orders` says how the kernels of a real device lay out their results where that is not the usual way.
    """
    limits = limits or ShapeLimits()
    calls = [Call(node, META) for node in nodes]
    on_meta = {
        name: torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=META) for name, w in weights.items()
    }
    walks = [_walk(inputs, on_meta, calls, orders, batch, limits) for batch in BATCHES]
    owners: dict[int, str | None] = {weight.untyped_storage()._cdata: None for weight in on_meta.values()}
    specs = {}
    for name, first in walks[0].items():
        specs[name] = ValueSpec(
            sizes=_affine(name, [tuple(walk[name].shape) for walk in walks]),
            dtype=first.dtype,
            order=orders.get(name),
            base=owners.setdefault(first.untyped_storage()._cdata, name),
        )
    return specs


def _walk(
    inputs: Mapping[str, TensorSpec],
    weights: Mapping[str, torch.Tensor],
    calls: Sequence[Call],
    orders: Mapping[str, tuple[int, ...]],
    batch: int,
    limits: ShapeLimits,
) -> dict[str, torch.Tensor]:
    values = {name: torch.empty((batch, *spec.shape), dtype=spec.dtype, device=META) for name, spec in inputs.items()}
    storages = {tensor.untyped_storage()._cdata for tensor in (*weights.values(), *values.values())}
    for call in calls:
        node = call.node
        _check_reads(node, values, weights, batch, limits)
        try:
            results = call(values, weights, batch)
        except Exception as error:  # whatever ATen dislikes about these shapes, in its own words
            raise ShapeError(f"{describe(node)} cannot run: {_first_line(error)}") from error
        if len(results) != len(node.outputs):
            raise ShapeError(f"{describe(node)} gives {len(results)} results, not {len(node.outputs)}")
        for name, result in zip(node.outputs, results, strict=True):
            if result.dim() > limits.dimensions or result.nbytes > limits.bytes_per_sample * batch:
                raise ShapeError(
                    f"{describe(node)} makes a tensor of shape {tuple(result.shape)}, {result.nbytes} bytes, over the "
                    f"limit of {limits.bytes_per_sample} bytes per sample and {limits.dimensions} dimensions"
                )
            if (order := orders.get(name)) is not None:
                if sorted(order) != list(range(result.dim())):
                    raise ShapeError(f"{describe(node)} cannot lie in memory in the order {order}")
                if result.untyped_storage()._cdata not in storages:
                    result = in_order(result, order)
            storages.add(result.untyped_storage()._cdata)
            values[name] = result
    return values


def _check_reads(
    node: Node,
    values: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    batch: int,
    limits: ShapeLimits,
) -> None:
    """What the meta device would not refuse, or only after making a list of a billion views."""
    if node.op == "aten.index.Tensor":
        indices = node.args[1] if isinstance(node.args[1], tuple) else ()
        for index in indices:
            tensor = values[index.name] if isinstance(index, Ref) else None
            tensor = weights[index.name] if isinstance(index, Weight) else tensor
            if tensor is not None and tensor.dtype not in (torch.int64, torch.int32):
                raise ShapeError(f"{describe(node)} selects by a {tensor.dtype} mask: its shape would depend on data")
    if node.op in MANY_VIEWS and len(node.outputs) > limits.results:
        raise ShapeError(f"{describe(node)} gives {len(node.outputs)} results, more than {limits.results}")
    if node.op in MANY_VIEWS:
        source = next((values[name] for name in node.refs()), None)
        source = source if source is not None else next(weights[name] for name in node.weights())
        pieces = _pieces(node, source, batch)
        if pieces != len(node.outputs):
            raise ShapeError(f"{describe(node)} gives {pieces} results, not {len(node.outputs)}")


def _pieces(node: Node, source: torch.Tensor, batch: int) -> int:
    arguments = [*node.args[1:], *node.kwargs.values()]
    how = arguments[0] if arguments else 0
    how = how.at(batch) if isinstance(how, Size) else how
    if isinstance(how, tuple):
        return len(how)
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    if node.op == "aten.unbind.int":
        dim = how
    if not isinstance(how, int) or not isinstance(dim, int) or not -source.dim() <= dim < source.dim():
        raise ShapeError(f"{describe(node)} has no such dimension as {dim!r}")
    size = source.shape[dim]
    if node.op == "aten.unbind.int":
        return size
    if how <= 0:
        raise ShapeError(f"{describe(node)} asks for pieces of {how}")
    if node.op == "aten.chunk.default":
        how = -(-size // how)
    return max(1, -(-size // max(1, how)))


def _affine(name: str, shapes: list[tuple[int, ...]]) -> tuple[Size, ...]:
    if len({len(shape) for shape in shapes}) == 1:
        low, high = BATCHES[:2]
        sizes = []
        for per_batch in zip(*shapes, strict=True):
            slope = (per_batch[1] - per_batch[0]) // (high - low)
            sizes.append(Size(slope, per_batch[0] - slope * low))
        if all(tuple(s.at(b) for s in sizes) == shape for b, shape in zip(BATCHES, shapes, strict=True)):
            return tuple(sizes)
    raise ShapeError(
        f"value {name!r} has the shapes {', '.join(map(str, shapes))} at batches of {BATCHES}: "
        "its sizes do not grow in proportion to the batch"
    )


def describe(node: Node) -> str:
    """'aten.conv2d.default in layer1.0.conv1' for messages."""
    return f"{node.op} ({node.name}, in {node.module or 'the model itself'})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
