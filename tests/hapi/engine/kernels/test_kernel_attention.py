"""The kernel for attention, and where compiled programs have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from hapi.engine import TOLERANCE, Precision
from hapi.engine.agreement import compare
from hapi.engine.compiler import cxx
from hapi.engine.kernels.attention import FLASH, FUSED, MOST_KEYS, FuseAttention
from hapi.engine.kernels.processor import has_kernels
from hapi.engine.library import Library
from hapi.engine.precision import rewritten
from hapi.engine.worker import compile_to
from hapi.model import capture

needs_compiler = pytest.mark.skipif(cxx() is None, reason="no C++ compiler on this machine")
needs_kernel = pytest.mark.skipif(not has_kernels(torch.float32), reason="no kernels of ours for this processor")
needs_bf16_kernel = pytest.mark.skipif(
    not has_kernels(torch.bfloat16), reason="no bf16 kernels of ours for this processor"
)


class Attends(nn.Module):
    """Over more rows than a block has, from fewer keys, an odd number of them, and a head of no even vectors."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        heads = tokens.unflatten(2, (2, 20)).transpose(1, 2)
        others = heads[:, :, :37]
        mixed = functional.scaled_dot_product_attention(heads, others, others.sin(), scale=0.4)
        return functional.scaled_dot_product_attention(mixed, heads, heads).transpose(1, 2).flatten(2)


@needs_kernel
@needs_compiler
@pytest.mark.parametrize(("precision", "threads"), [("float32", 2), pytest.param("bf16", 1, marks=needs_bf16_kernel)])
def test_the_attention_kernel_gives_what_eager_gives(
    precision: Precision, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    program = capture(Attends(), 3 * torch.randn(2, 131, 40), name="attends").whole
    source = rewritten(program, precision)

    library = Library(compile_to(source, tmp_path / "program.so", has_ours=True), program.device)

    assert b"fused_attention" in (tmp_path / "program.so").read_bytes()
    for batch in (1, 3):
        assert compare(program, library, source, batch) < TOLERANCE[precision]


def attends(causal: bool = False, scale: float | None = None, tokens: int = 20) -> fx.GraphModule:
    """A graph with PyTorch's kernel."""

    def run(*given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = FLASH(*given, is_causal=causal, scale=scale)[0]
        return found

    module = make_fx(run)(*(torch.randn(3, 2, tokens, 16) for _ in range(3)))
    module.graph.eliminate_dead_code()
    return module


@pytest.mark.parametrize(
    ("given", "is_fused"),
    [
        ({}, True),
        ({"scale": 0.5}, True),
        ({"scale": -0.5}, False),
        ({"causal": True}, False),
        ({"tokens": MOST_KEYS + 1}, False),
    ],
)
def test_attention_is_by_our_kernel_where_nothing_is_masked(
    given: dict[str, Any], is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hapi.engine.kernels.attention.has_kernels", lambda dtype: True)
    module = attends(**given)
    inputs = [torch.randn(3, 2, given.get("tokens", 20), 16) for _ in range(3)]
    expected = module(*inputs)

    FuseAttention()(module.graph)

    module.graph.lint()
    module.recompile()
    assert any(node.target is FUSED for node in module.graph.nodes) == is_fused
    torch.testing.assert_close(module(*inputs), expected)


def test_attention_is_left_to_pytorch_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hapi.engine.kernels.attention.has_kernels", lambda dtype: False)
    module = attends()
    FuseAttention()(module.graph)
    assert any(node.target is FLASH for node in module.graph.nodes)
