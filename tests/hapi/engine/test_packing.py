"""Weights of convolutions that are laid out when a program is compiled."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from hapi.engine.packing import PackWeights

needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


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
