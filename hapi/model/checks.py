"""What the meta device would not refuse: results by the billion, shapes that depend on data, trusting kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hapi.model.node import Argument, Node, Ref, Weight
from hapi.model.ops import MANY_VIEWS, named
from hapi.model.specs import Size


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


Tensors = Mapping[str, torch.Tensor]


def check_arguments_fit(node: Node, values: Tensors, weights: Tensors, batch: int, limits: ShapeLimits) -> None:
    """Raises ShapeError for a node that must not even be tried on the meta device."""
    arguments = named(node.op, node.args, node.kwargs)

    def tensor(argument: Argument) -> torch.Tensor | None:
        if isinstance(argument, Ref):
            return values[argument.name]
        return weights[argument.name] if isinstance(argument, Weight) else None

    if node.op in ("aten.index.Tensor", "aten.index_put.default"):
        _check_indices(node, arguments["indices"], tensor)
    elif node.op in MANY_VIEWS:
        if len(node.outputs) > limits.results:
            raise ShapeError(f"{node.described} gives {len(node.outputs)} results, more than {limits.results}")
        source = tensor(next(iter(arguments.values())))
        assert source is not None
        pieces = _pieces(node, arguments, source, batch)
        if pieces != len(node.outputs):
            raise ShapeError(f"{node.described} gives {pieces} results, not {len(node.outputs)}")
    elif node.op in _FUSED:
        _check_attention(node, arguments, {name: tensor(argument) for name, argument in arguments.items()})


def _check_indices(node: Node, indices: Argument, tensor: Callable[[Argument], torch.Tensor | None]) -> None:
    for index in indices if isinstance(indices, tuple) else ():
        given = tensor(index)
        if given is not None and given.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"{node.described} selects by a {given.dtype} mask: its shape would depend on data")


def _pieces(node: Node, arguments: Mapping[str, Argument], source: torch.Tensor, batch: int) -> int:
    """How many results an operation that takes a tensor apart will give."""
    dim = arguments.get("dim", 0)
    if not isinstance(dim, int) or not -source.dim() <= dim < source.dim():
        raise ShapeError(f"{node.described} has no such dimension as {dim!r}")
    size = source.shape[dim]
    if node.op == "aten.unbind.int":
        return size
    how = next(arguments[key] for key in ("split_size", "split_sizes", "chunks") if key in arguments)
    if isinstance(how, tuple):
        return len(how)
    each = how.at(batch) if isinstance(how, Size) else how
    if not isinstance(each, int) or each <= 0:
        raise ShapeError(f"{node.described} asks for pieces of {how}")
    if node.op == "aten.chunk.default":
        each = max(1, -(-size // each))
    return max(1, -(-size // each))


_FUSED = ("aten._native_multi_head_attention.default", "aten._transformer_encoder_layer_fwd.default")


def _check_attention(node: Node, arguments: Mapping[str, Argument], tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Fused attention has no shape checks on the meta device, and few in its kernels."""
    query = tensors.get("query", tensors.get("src"))
    width, heads = arguments["embed_dim"], arguments.get("num_head", arguments.get("num_heads"))
    if query is None or query.dim() != 3 or not isinstance(width, int) or not isinstance(heads, int):
        raise ShapeError(f"{node.described} takes a tensor of 3 dimensions, its width and a number of heads")
    batch, length = query.shape[:2]
    if heads <= 0 or width % heads:
        raise ShapeError(f"{node.described} cannot divide a width of {width} among {heads} heads")
    wanted: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("query", "key", "value", "src"), (batch, length, width)),
        "qkv_weight": (3 * width, width),
        "qkv_bias": (3 * width,),
        "proj_weight": (width, width),
        **dict.fromkeys(
            ("proj_bias", "norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2", "ffn_bias_2"), (width,)
        ),
    }
    if (hidden := tensors.get("ffn_bias_1")) is not None:
        wanted |= {"ffn_weight_1": (hidden.numel(), width), "ffn_weight_2": (width, hidden.numel())}
    for name, shape in wanted.items():
        given = tensors.get(name)
        if given is not None and (tuple(given.shape) != shape or given.dtype != query.dtype):
            raise ShapeError(f"{node.described}: {name} must be {shape} {query.dtype}, got {tuple(given.shape)}")
    if (mask := tensors.get("mask")) is not None:
        kinds = {0: (length, length), 1: (batch, length), 2: (batch, heads, length, length)}
        kind = arguments.get("mask_type")
        fits = kinds.get(kind) if isinstance(kind, int) else None
        if mask.dtype != torch.bool or tuple(mask.shape) != fits:
            raise ShapeError(f"{node.described}: a mask of type {kind} must be {fits} bool, got {tuple(mask.shape)}")
