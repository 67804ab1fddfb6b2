"""Attention in plain operations."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from hapi.engine import has_bf16
from hapi.engine.attention import PLAIN, attention

needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")


def queries(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, tokens, 16, generator=generator).to(dtype) for _ in range(3)]


@needs_bf16
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_in_two_products_is_what_the_fused_kernel_gives(
    scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hapi.engine.attention.has_kernels", lambda dtype: False)
    given = queries(20, torch.bfloat16)
    exact = functional.scaled_dot_product_attention(*(tensor.float() for tensor in given), scale=scale)
    assert (attention(*given, scale=scale).float() - exact).abs().max() < 1e-2 * exact.abs().max()


@pytest.mark.parametrize(
    ("tokens", "dtype", "causal", "is_plain"),
    [
        (64, torch.bfloat16, False, True),
        (65, torch.bfloat16, False, False),  # more scores than queries, keys, values and results
        (20, torch.bfloat16, True, False),
        (20, torch.float32, False, False),
    ],
)
def test_attention_is_taken_apart_only_where_that_is_faster_and_small(
    tokens: int, dtype: torch.dtype, causal: bool, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hapi.engine.attention.has_kernels", lambda dtype: False)
    traced = make_fx(lambda *given: attention(*given, is_causal=causal))(*queries(tokens, dtype))
    assert any("bmm" in str(node.target) for node in traced.graph.nodes) == is_plain


def test_operations_are_named_as_graphs_name_them() -> None:
    for name in PLAIN:
        _, operation, overload = name.split(".")
        assert hasattr(getattr(torch.ops.aten, operation), overload)
