"""Attention that PyTorch runs as one operation, said in plain ones: a compiler cannot look into the fused kernels.

The same arithmetic, with other last bits, as PyTorch's `aten/src/ATen/native/transformers/attention.cpp` and
`transformer.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from hapi.engine.kernels.processor import has_kernels

NATIVE_ATTENTION = "aten._native_multi_head_attention.default"
DOT_PRODUCT = "aten.scaled_dot_product_attention.default"
ENCODER_LAYER = "aten._transformer_encoder_layer_fwd.default"


def self_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`aten._native_multi_head_attention` of (B, T, E) tensors without a mask; the weights it gives are empty.

    NotImplementedError for a mask, or where the attention weights themselves are asked for.
    """
    if mask is not None or need_weights:
        raise NotImplementedError("attention with a mask or with its weights given back")
    batch, _, width = query.shape
    parts = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    if query is key and key is value:
        projected = functional.linear(query, qkv_weight, qkv_bias).chunk(3, dim=-1)
    else:
        projected = tuple(functional.linear(*part) for part in parts)
    queries, keys, values = (
        tensor.reshape(batch, tensor.shape[1], num_head, width // num_head).transpose(1, 2) for tensor in projected
    )
    mixed = attention(queries, keys, values).transpose(1, 2).reshape(query.shape)
    return functional.linear(mixed, proj_weight, proj_bias), query.new_empty(0)


def encoder_layer(
    src: torch.Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: torch.Tensor,
    norm_bias_1: torch.Tensor,
    norm_weight_2: torch.Tensor,
    norm_bias_2: torch.Tensor,
    ffn_weight_1: torch.Tensor,
    ffn_bias_1: torch.Tensor,
    ffn_weight_2: torch.Tensor,
    ffn_bias_2: torch.Tensor,
    mask: torch.Tensor | None = None,
    mask_type: int | None = None,
) -> torch.Tensor:
    """`aten._transformer_encoder_layer_fwd` of a (B, T, E) tensor without a mask; NotImplementedError with one."""

    def attend(value: torch.Tensor) -> torch.Tensor:
        return self_attention(
            value, value, value, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False
        )[0]

    def feed(value: torch.Tensor) -> torch.Tensor:
        hidden = functional.linear(value, ffn_weight_1, ffn_bias_1)
        return functional.linear(
            functional.gelu(hidden) if use_gelu else functional.relu(hidden), ffn_weight_2, ffn_bias_2
        )

    def first(value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, [embed_dim], norm_weight_1, norm_bias_1, eps)

    def second(value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, [embed_dim], norm_weight_2, norm_bias_2, eps)

    if norm_first:
        src = src + attend(first(src))
        return src + feed(second(src))
    src = first(src + attend(src))
    return second(src + feed(src))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`aten.scaled_dot_product_attention` of (B, H, T, D) tensors: two products and a softmax where that is faster.

    On CPUs in bfloat16 PyTorch's fused kernel is slower than oneDNN's products, which `bmm` calls: 16 times 12 heads of
    197 tokens took 27 ms on a core of an AMD EPYC, and 11 so (not measured on processors with AMX). The scores are held
    whole, so this is for those that are no larger than queries, keys, values and results are together. Where there is a
    kernel of ours, attention stays one operation, for that to replace: it is faster than both.
    """
    is_slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.dim() == 4
    is_plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    heads, tokens, width = query.shape[-3], query.shape[-2], query.shape[-1]
    if not (is_slow and is_plain and key.shape[-2] <= 4 * width) or has_kernels(query.dtype):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    rows, keys, values = (tensor.reshape(-1, tensor.shape[-2], tensor.shape[-1]) for tensor in (query, key, value))
    scores = torch.bmm(rows, keys.transpose(1, 2)).float() * (width**-0.5 if scale is None else scale)
    mixed = torch.bmm(scores.softmax(-1).to(query.dtype), values)
    return mixed.reshape(-1, heads, tokens, value.shape[-1])


PLAIN: dict[str, Callable[..., Any]] = {
    NATIVE_ATTENTION: self_attention,
    ENCODER_LAYER: encoder_layer,
    DOT_PRODUCT: attention,
}
"""By operation, what computes the same in plain operations."""
