"""Which operations a graph may hold: an explicit list of pure ATen overloads, and a check of their arguments.

An operation is on the list when its result is a function of its arguments alone. None of these writes to its inputs,
draws random numbers, reads files, resizes or replaces storage, or makes a result whose shape depends on data. What
torch.export gives for torchvision and Hugging Face encoders comes first; plain relatives of those are here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from hapi.model.node import Argument, Ref, Weight
from hapi.model.specs import Size

_VIEWS = """
    alias.default detach.default diagonal.default expand.default flatten.using_ints narrow.default permute.default
    reshape.default select.int slice.Tensor squeeze.default squeeze.dim squeeze.dims t.default transpose.int
    unflatten.int unfold.default unsqueeze.default
"""
_MANY_VIEWS = """
    chunk.default split.Tensor split.sizes split_with_sizes.default unbind.int
"""
_POINTWISE = """
    _to_copy.default abs.default add.Scalar add.Tensor batch_norm.default bitwise_and.Scalar bitwise_and.Tensor
    bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor clamp.Tensor clamp.default clamp_max.default
    clamp_min.default clone.default contiguous.default cos.default div.Scalar div.Tensor div.Tensor_mode elu.default
    eq.Scalar eq.Tensor erf.default exp.default expm1.default fill.Scalar floor.default full_like.default ge.Scalar
    ge.Tensor gelu.default gt.Scalar gt.Tensor hardsigmoid.default hardswish.default hardtanh.default isfinite.default
    isinf.default isnan.default le.Scalar le.Tensor leaky_relu.default log.default log1p.default logical_and.default
    logical_not.default logical_or.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor max.other
    maximum.default min.other minimum.default mish.default mul.Scalar mul.Tensor ne.Scalar ne.Tensor neg.default
    new_full.default new_ones.default new_zeros.default ones_like.default pow.Scalar pow.Tensor_Scalar
    pow.Tensor_Tensor prelu.default reciprocal.default relu.default relu6.default remainder.Scalar rsqrt.default
    rsub.Scalar sigmoid.default silu.default sin.default softplus.default sqrt.default sub.Scalar sub.Tensor
    tanh.default type_as.default where.ScalarOther where.ScalarSelf where.self zeros_like.default
"""
_MOVING = """
    cat.default constant_pad_nd.default copy.default cumsum.default diagonal_scatter.default flip.default
    gather.default index.Tensor index_put.default index_select.default meshgrid.default meshgrid.indexing pad.default
    pixel_shuffle.default pixel_unshuffle.default reflection_pad2d.default repeat.default roll.default scatter.src
    scatter.value select_scatter.default slice_scatter.default stack.default tile.default tril.default triu.default
"""
_FACTORIES = """
    arange.default arange.start arange.start_step full.default ones.default scalar_tensor.default zeros.default
"""
_NORMS = """
    group_norm.default instance_norm.default layer_norm.default rms_norm.default
"""
_REDUCTIONS = """
    all.dim amax.default amin.default any.dim argmax.default linalg_vector_norm.default log_softmax.int
    logsumexp.default max.dim mean.default mean.dim min.dim softmax.int std.correction sum.default sum.dim_IntList
    topk.default var.correction var_mean.correction
"""
_POOLS = """
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default avg_pool2d.default
    avg_pool3d.default max_pool2d.default upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec
"""
_HEAVY = """
    _native_multi_head_attention.default _transformer_encoder_layer_fwd.default addmm.default baddbmm.default
    bmm.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose2d.input
    einsum.default embedding.default glu.default linear.default matmul.default mm.default
    scaled_dot_product_attention.default
"""


def _names(group: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in group.split())


VIEWS = _names(_VIEWS) | _names(_MANY_VIEWS)
MANY_VIEWS = _names(_MANY_VIEWS)
FACTORIES = _names(_FACTORIES)
POINTWISE = _names(_POINTWISE)

CHEAP = VIEWS | POINTWISE | FACTORIES | _names(_MOVING)
"""Work of a few operations per element or less: what a suffix may repeat instead of having it shipped."""

LIGHT = CHEAP | _names(_NORMS)
"""Work that never decides between two places to divide a graph."""

ALLOWED = LIGHT | _names(_REDUCTIONS) | _names(_POOLS) | _names(_HEAVY)
"""Every operation that a graph may hold."""

MAX_TEXT = 64
"""The longest string argument (an einsum equation, a padding mode), in characters."""


@cache
def resolve(name: str) -> Callable[..., Any]:
    """The operation that `aten.conv2d.default` names; raises LookupError for anything that is not on the list."""
    if name not in ALLOWED:
        raise LookupError(f"operation {name[:80]!r} is not on the list of allowed operations")
    namespace, operation, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), operation), overload)


@cache
def schema(name: str) -> tuple[tuple[str, str, bool, bool], ...]:
    """(name, type, keyword only, has a default) of each argument of an operation."""
    arguments = resolve(name)._schema.arguments  # type: ignore[attr-defined]
    return tuple((a.name, str(a.real_type), a.kwarg_only, a.has_default_value()) for a in arguments)


_REQUIRED: dict[str, dict[str, Argument]] = {
    # Training mode would write to the running statistics; dropout would draw random numbers.
    "aten.batch_norm.default": {"training": False},
    "aten.instance_norm.default": {"running_mean": None, "running_var": None},
    "aten.scaled_dot_product_attention.default": {"dropout_p": 0.0},
}


@cache
def takes_device(name: str) -> bool:
    """Whether the operation makes a tensor from nothing, so that whoever runs it must say on which device."""
    return name in FACTORIES


def named(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are given, by name."""
    positional = (argument[0] for argument in schema(name) if not argument[2])
    return dict(zip(positional, args, strict=False)) | dict(kwargs)


def check_arguments(name: str, args: tuple[Argument, ...], kwargs: Mapping[str, Argument]) -> None:
    """Raises LookupError or TypeError unless the arguments are what the operation's schema takes.

    Devices, layouts and pinned memory are never arguments: a graph does not know where it will run.
    """
    declared = schema(name)
    positional = [argument for argument in declared if not argument[2]]
    if len(args) > len(positional):
        raise TypeError(f"{name} takes at most {len(positional)} positional arguments, got {len(args)}")
    given = dict(zip((argument[0] for argument in positional), args, strict=False))
    if repeated := given.keys() & kwargs.keys():
        raise TypeError(f"{name} was given {sorted(repeated)} twice")
    given |= kwargs
    if unknown := given.keys() - {argument[0] for argument in declared}:
        raise TypeError(f"{name} has no argument {sorted(unknown)}")
    for argument, kind, _, has_default in declared:
        if argument in given:
            # Binary operations take a plain number for their second tensor, as Python's operators do.
            is_operand = argument == "other" and kind == "Tensor" and _fits(given[argument], "number")
            if not is_operand and not _fits(given[argument], kind):
                raise TypeError(f"{name}: argument {argument!r} must be {kind}, got {_kind(given[argument])}")
        elif not has_default:
            raise TypeError(f"{name}: argument {argument!r} is missing")
    for argument, value in _REQUIRED.get(name, {}).items():
        if given.get(argument, value) != value:
            raise TypeError(f"{name}: argument {argument!r} must be {value!r}, got {_kind(given[argument])}")


def _fits(value: Argument, kind: str) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        if isinstance(value, tuple):
            return all(_fits(item, inner) for item in value)
        return inner == "int" and _fits(value, inner)  # conv2d takes stride=2 for stride=[2, 2]
    leaf = _LEAVES.get(kind)
    return leaf is not None and leaf(value)


def _is_int(value: Argument) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_LEAVES: dict[str, Callable[[Argument], bool]] = {
    "Tensor": lambda value: isinstance(value, Ref | Weight),
    "int": lambda value: _is_int(value) or isinstance(value, Size),
    "float": lambda value: isinstance(value, float) or _is_int(value),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
    "number": lambda value: isinstance(value, bool | float | Size) or _is_int(value),
    "ScalarType": lambda value: isinstance(value, torch.dtype),
    "MemoryFormat": lambda value: isinstance(value, torch.memory_format),
}


def _kind(value: Argument) -> str:
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    return "a tensor" if isinstance(value, Ref | Weight) else repr(value)[:80]
