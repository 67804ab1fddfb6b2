"""Fused attention counts as much as the same attention taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hapi.model import capture
from profiler.flops import count_flops

WIDTH, TOKENS = 8, 5


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="PyTorch 2.11 fuses, and counts, attention differently")
@pytest.mark.parametrize(
    "module",
    [SelfAttention(), nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=24, dropout=0.0, batch_first=True)],
    ids=["attention", "encoder layer"],
)
def test_fused_attention(module: nn.Module) -> None:
    example = torch.randn(2, TOKENS, WIDTH)
    module.train()  # PyTorch takes the fused path in eval mode only
    with FlopCounterMode(display=False) as apart:
        module(example)
    graph = capture(module.eval().requires_grad_(False), example)
    assert any("_native_multi_head" in node.op or "_encoder_layer_fwd" in node.op for node in graph.nodes)
    assert sum(count_flops(graph.whole).values()) == apart.get_total_flops() // 2
