"""Shapes without running: the graph is walked on PyTorch's meta device, which computes shapes and allocates nothing.

Every spec a graph has is derived here, after capture and again after loading, so that an archive has no shapes to
lie about. Sizes are read at three batch sizes and must be affine in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hapi.model.calls import Call
from hapi.model.checks import ShapeError, ShapeLimits, check_arguments_fit
from hapi.model.node import Node
from hapi.model.specs import Size, TensorSpec, ValueSpec, in_order

BATCHES = (2, 3, 7)
META = torch.device("meta")


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
    try:
        values = {n: torch.empty((batch, *spec.shape), dtype=spec.dtype, device=META) for n, spec in inputs.items()}
    except RuntimeError as error:  # more bytes than can be counted
        raise ShapeError(f"inputs of such shapes cannot be: {_first_line(error)}") from error
    storages = {tensor.untyped_storage()._cdata for tensor in (*weights.values(), *values.values())}
    for call in calls:
        node = call.node
        check_arguments_fit(node, values, weights, batch, limits)
        try:
            results = call(values, weights, batch)
        except Exception as error:  # whatever ATen dislikes about these shapes, in its own words
            raise ShapeError(f"{node.described} cannot run: {_first_line(error)}") from error
        if len(results) != len(node.outputs):
            raise ShapeError(f"{node.described} gives {len(results)} results, not {len(node.outputs)}")
        for name, result in zip(node.outputs, results, strict=True):
            if result.dim() > limits.dimensions or result.nbytes > limits.bytes_per_sample * batch:
                raise ShapeError(
                    f"{node.described} makes a tensor of shape {tuple(result.shape)}, {result.nbytes} bytes, over the "
                    f"limit of {limits.bytes_per_sample} bytes per sample and {limits.dimensions} dimensions"
                )
            if (order := orders.get(name)) is not None:
                if sorted(order) != list(range(result.dim())):
                    raise ShapeError(f"{node.described} cannot lie in memory in the order {order}")
                if result.untyped_storage()._cdata not in storages:
                    result = in_order(result, order)
            storages.add(result.untyped_storage()._cdata)
            values[name] = result
    return values


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
