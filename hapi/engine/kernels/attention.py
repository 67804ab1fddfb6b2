"""Attention of compiled programs, see `attention.h`.

PyTorch's own kernel multiplies with MKL in float32, which uses half of what AVX-512 can do on processors of other
makers, and in bfloat16 it is slower than oneDNN's products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import functional

from hapi.engine.kernels.processor import has_kernels

VERSION = "1"
MOST_KEYS = 1024
"""For which the kernel holds the scores of a block of rows."""
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

torch.library.define(
    "hapi::fused_attention",
    "(Tensor query, Tensor key, Tensor value, float scale) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)


@torch.library.impl("hapi::fused_attention", "cpu")
def _eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value, scale=scale)


@torch.library.register_fake("hapi::fused_attention")  # type: ignore[untyped-decorator]
def _fake(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1])).transpose(1, 2)


FUSED = torch.ops.hapi.fused_attention.default
"""(B, H, T, D) tensors to one of (B, H, T, E) that lies in memory as (B, T, H, E)."""


class FuseAttention(CustomGraphPass):
    """A pass of PyTorch's compiler over a graph for the CPU, in place: attention by the kernel where it can do it."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is not FLASH or not _fits(node):
                continue
            given: list[Any] = [*node.args]
            scale = node.kwargs.get("scale")
            if scale is None:
                scale = given[0].meta["val"].shape[-1] ** -0.5
            with graph.inserting_before(node):
                fused = graph.call_function(FUSED, (*given[:3], scale))
            for item in list(node.users):
                fused.meta.update(item.meta)
                item.replace_all_uses_with(fused)
                graph.erase_node(item)
            graph.erase_node(node)

    def uuid(self) -> Any:
        return f"hapi-fuse-attention-{VERSION}"


def _fits(node: fx.Node) -> bool:
    """Whether there is a kernel for these types and shapes, nothing is masked, and only the result is read."""
    given: list[Any] = [*node.args]
    query, key, value = (argument.meta["val"] for argument in given[:3])
    rest: dict[str, Any] = dict(zip(("dropout_p", "is_causal"), given[3:], strict=False)) | node.kwargs
    is_plain = not rest.get("dropout_p") and not rest.get("is_causal") and rest.get("attn_mask") is None
    scale = rest.get("scale")
    lengths = (*query.shape[1:], *key.shape[1:], *value.shape[1:])
    return (
        is_plain
        and (scale is None or scale > 0)  # the largest product has the largest exponential
        and has_kernels(query.dtype)
        and all(isinstance(length, int) and length > 0 for length in lengths)
        and query.shape[1] == key.shape[1] == value.shape[1]
        and key.shape[2] <= MOST_KEYS
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
        and (query.dtype == torch.float32 or (query.shape[-1] % 2 == 0 and key.stride(2) % 2 == 0))  # moved in pairs
        and all(user.args[1:] == (0,) for user in node.users)
    )
