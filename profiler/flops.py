"""FLOPs of each node of a program, counted on shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from hapi.model import Program
from profiler.memory import spec_input

Shape = Sequence[int]


class _Node(Protocol):
    @property
    def name(self) -> str: ...


def count_flops(program: Program) -> Mapping[str, int]:
    """FLOPs per sample of each node (a multiply-add counts as two), counted on shapes alone: nothing is computed.

    Counted as PyTorch's FlopCounterMode does: matrix products, convolutions and attention; pointwise work is 0. The
    fused attention operations, which it does not know, are counted as the products that they are made of.
    """
    one, two = (_flops(program, batch) for batch in (1, 2))
    return {name: two[name] - one[name] for name in one}


def _flops(program: Program, batch: int) -> dict[str, int]:
    program = program.to("meta")
    inputs = [spec_input(spec.shape, spec.dtype, batch, "meta") for spec in program.inputs]
    counted: dict[str, int] = {}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:

        @contextmanager
        def observe(node: _Node) -> Iterator[None]:
            before = counter.get_total_flops()
            yield
            counted[node.name] = counter.get_total_flops() - before

        program.run(*inputs, observe=observe)
    return counted


def _attention(query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    """Self-attention of (B, N, D): the projections to query, key and value, two products per head, one projection."""
    batch, tokens, width = query
    sources = key[1]
    projections = 2 * batch * width * width * (2 * tokens + 2 * sources)
    return projections + 2 * 2 * batch * tokens * sources * width


def _encoder_layer(src: Shape, *args: Any, **__: Any) -> int:
    """Self-attention and the feed-forward network of a transformer encoder layer."""
    batch, tokens, width = src
    hidden = args[_FFN_WEIGHT_1][0]
    return _attention(src, src) + 2 * 2 * batch * tokens * width * hidden


_FFN_WEIGHT_1 = 13
"""Position of `ffn_weight_1` (hidden, D) after `src` in aten::_transformer_encoder_layer_fwd."""

FUSED = {
    torch.ops.aten._native_multi_head_attention: _attention,
    torch.ops.aten._transformer_encoder_layer_fwd: _encoder_layer,
}
