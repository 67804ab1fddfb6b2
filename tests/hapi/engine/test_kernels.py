"""What the compiler is given other than the operations themselves: attention in plain ones, and packed weights."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from hapi.engine import has_bf16
from hapi.engine.attention import PLAIN, attention
from hapi.engine.packing import PackWeights

needs_bf16 = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def queries(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, tokens, 16, generator=generator).to(dtype) for _ in range(3)]


@needs_bf16
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_in_two_products_is_what_the_fused_kernel_gives(scale: float | None) -> None:
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
    tokens: int, dtype: torch.dtype, causal: bool, is_plain: bool
) -> None:
    traced = make_fx(lambda *given: attention(*given, is_causal=causal))(*queries(tokens, dtype))
    assert any("bmm" in str(node.target) for node in traced.graph.nodes) == is_plain


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
