"""What the compiler is given other than the operations themselves: attention in plain ones, a kernel for it, and packed
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from hapi.engine import TOLERANCE, Precision, has_bf16
from hapi.engine.agreement import compare
from hapi.engine.attention import MOST_KEYS, PLAIN, attention, has_kernel
from hapi.engine.compiler import cxx
from hapi.engine.fused import FLASH, FUSED, FuseAttention
from hapi.engine.library import Library
from hapi.engine.packing import PackWeights
from hapi.engine.precision import rewritten
from hapi.engine.worker import compile_to
from hapi.model import capture

needs_compiler = pytest.mark.skipif(cxx() is None, reason="no C++ compiler on this machine")
needs_kernel = pytest.mark.skipif(not has_kernel(torch.float32), reason="no kernel of ours for this processor")
needs_bf16_kernel = pytest.mark.skipif(
    not has_kernel(torch.bfloat16), reason="no bf16 kernel of ours for this processor"
)
needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def queries(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, tokens, 16, generator=generator).to(dtype) for _ in range(3)]


@needs_bf16
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_in_two_products_is_what_the_fused_kernel_gives(
    scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hapi.engine.attention.has_kernel", lambda dtype: False)
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
    monkeypatch.setattr("hapi.engine.attention.has_kernel", lambda dtype: False)
    traced = make_fx(lambda *given: attention(*given, is_causal=causal))(*queries(tokens, dtype))
    assert any("bmm" in str(node.target) for node in traced.graph.nodes) == is_plain


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

    library = Library(compile_to(source, tmp_path / "program.so"), program.device)

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
    monkeypatch.setattr("hapi.engine.fused.has_kernel", lambda dtype: True)
    module = attends(**given)
    inputs = [torch.randn(3, 2, given.get("tokens", 20), 16) for _ in range(3)]
    expected = module(*inputs)

    FuseAttention()(module.graph)

    module.graph.lint()
    module.recompile()
    assert any(node.target is FUSED for node in module.graph.nodes) == is_fused
    torch.testing.assert_close(module(*inputs), expected)


def test_attention_is_left_to_pytorch_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hapi.engine.fused.has_kernel", lambda dtype: False)
    module = attends()
    FuseAttention()(module.graph)
    assert any(node.target is FLASH for node in module.graph.nodes)


@pytest.mark.parametrize(
    ("name", "capability", "flags", "dtypes"),
    [
        ("AMD EPYC", "AVX512", {"avx512f", "avx512_bf16"}, {torch.float32, torch.bfloat16}),
        ("AMD EPYC", "AVX512", {"avx512f"}, {torch.float32}),
        ("AMD EPYC", "AVX2", {"avx512f", "avx512_bf16"}, set()),
        ("Intel(R) Xeon(R)", "AVX512", {"avx512f", "avx512_bf16"}, set()),
    ],
)
def test_there_is_a_kernel_where_it_was_measured(
    name: str, capability: str, flags: set[str], dtypes: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("hapi.engine.attention.cpu_name", lambda: name)
    monkeypatch.setattr("hapi.engine.attention.processor_flags", lambda: frozenset(flags))
    assert {dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if has_kernel(dtype)} == dtypes


def test_operations_are_named_as_graphs_name_them() -> None:
    for name in PLAIN:
        _, operation, overload = name.split(".")
        assert hasattr(getattr(torch.ops.aten, operation), overload)


@needs_mkldnn
@pytest.mark.parametrize("groups", [1, 8])
def test_packed_weights_give_the_same_at_every_batch(groups: int) -> None:
    torch.manual_seed(0)
    root = nn.Module()
    root.register_buffer("weight", torch.randn(16, 8 // groups, 3, 3))
    graph = fx.Graph()
    image, weight = graph.placeholder("image"), graph.get_attr("weight")
    image.meta["val"] = torch.empty(2, 8, 9, 9, device="meta")
    geometry = ([1, 1], [2, 2], [1, 1], groups)
    plain = torch.ops.mkldnn._convolution_pointwise.default
    graph.output(graph.call_function(plain, (image, weight, None, *geometry, "none", [], "")))
    module = fx.GraphModule(root, graph)
    images = [torch.randn(batch, 8, 9, 9) for batch in (1, 2, 7)]
    expected = [functional.conv2d(image, root.weight, None, 2, 1, 1, groups) for image in images]  # type: ignore[arg-type]

    PackWeights(2)(graph)

    graph.lint()
    module.recompile()
    (held,) = (getattr(module, str(node.target)) for node in graph.nodes if node.op == "get_attr")
    assert held.is_mkldnn
    for image, features in zip(images, expected, strict=True):
        torch.testing.assert_close(module(image), features, rtol=1e-5, atol=1e-5)


def test_the_pass_has_a_name_of_its_own_for_each_batch() -> None:
    assert PackWeights(2).uuid() != PackWeights(3).uuid()
