"""Writes in place: what eager mode gives, the graph gives, whether the short way or the long one made it pure."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build, captured
from torch import Tensor, fx, nn
from torch.export import Dim, export

from hapi.model import capture
from hapi.model.purify import NotPureError, pure_graph

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def used_after(x: Tensor) -> Tensor:
    y = x * 2
    z = y.relu_()
    return y + 3 * z


def written_twice(x: Tensor) -> Tensor:
    y = x - 1
    before = y * 2
    y.add_(x)
    y.mul_(y)
    return y + before


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    view = y[:, 1:3]
    column = y.select(1, 0)
    y.relu_()
    return torch.cat([view, column.unsqueeze(1)], 1)


def slice_written(x: Tensor) -> Tensor:
    y = x * 2
    other = y[:, :2]
    y[:, 1:3].add_(10)
    return y + other.sum(1, keepdim=True)


def slice_of_a_slice_written(x: Tensor) -> Tensor:
    y = (x * 2).reshape(x.shape[0], 2, 2)
    y[:, 0][:, 1:] = 7.0
    return y.flatten(1)


def filled(x: Tensor) -> Tensor:
    mask = x.new_zeros(4)
    mask[1:] = 1.0
    mask[2:3].fill_(5.0)
    return x * mask


def part_of_a_split_seen(x: Tensor) -> Tensor:
    y = x + 1
    left, right = y.chunk(2, 1)
    y.sub_(1)
    return left * right


def dropout_is_the_tensor_itself(x: Tensor) -> Tensor:
    y = x + 1
    z = F.dropout(y, 0.5, training=False)
    z.relu_()
    return y * z


def cast_to_the_same_is_the_tensor_itself(x: Tensor) -> Tensor:
    y = x + 1
    y.float().relu_()
    return y.double().float() + y


def other_layout(x: Tensor) -> Tensor:
    y = (x.reshape(x.shape[0], 2, 2) * 2).transpose(1, 2)
    y.add_(x.reshape(x.shape[0], 2, 2))
    return y.reshape(x.shape[0], 4)


def copied_into(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:].copy_(x[:, :3].double())
    return y


FOLLOWED = [
    used_after,
    written_twice,
    seen_through_a_view,
    slice_written,
    slice_of_a_slice_written,
    filled,
    part_of_a_split_seen,
    dropout_is_the_tensor_itself,
    cast_to_the_same_is_the_tensor_itself,
    other_layout,
    copied_into,
]


def through_a_reshape(x: Tensor) -> Tensor:
    y = x * 2
    y.reshape(-1, 2, 2).relu_()
    return y


def through_a_split(x: Tensor) -> Tensor:
    y = x * 2
    left, _ = y.split(2, 1)
    left.relu_()
    return y


FOLLOWED.append(through_a_reshape)
LONG_WAY = [through_a_split]


def exported(function: Callable[[Tensor], Tensor]) -> fx.Graph:
    with torch.no_grad():
        program = export(Wrapped(function).eval(), (torch.randn(2, 4),), dynamic_shapes=({0: Dim("b")},), strict=False)
    return program.graph


@pytest.mark.parametrize("function", [*FOLLOWED, *LONG_WAY])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_graph_gives_what_eager_mode_gives(function: Callable[[Tensor], Tensor], batch: int) -> None:
    graph = capture(Wrapped(function), torch.randn(2, 4))
    x = torch.randn(batch, 4)
    assert torch.equal(graph(x.clone()), function(x.clone()))


@pytest.mark.parametrize("function", FOLLOWED)
def test_the_short_way_leaves_no_write_and_the_program_as_it_was(function: Callable[[Tensor], Tensor]) -> None:
    graph = exported(function)
    before = str(graph)
    pure = pure_graph(graph)
    assert str(graph) == before
    pure.lint()
    assert not any(
        node.target._schema.is_mutable for node in pure.nodes if isinstance(node.target, torch._ops.OpOverload)
    )


@pytest.mark.parametrize("function", LONG_WAY)
def test_what_is_not_followed_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotPureError, match="a write through"):
        pure_graph(exported(function))


def test_writes_to_an_input_are_refused() -> None:
    with pytest.raises(NotPureError, match="writes to an input"):
        pure_graph(exported(lambda x: x.relu_() + 1))


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="PyTorch 2.11 exports swin_t so that it takes the long way")
def test_every_network_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(import_module("hapi.model.capture"), "_decomposed", refuse)
    for name in ("resnet18", "swin_t", "shufflenet_v2_x1_0", "mobilenet_v3_small", "hf-bert", "hf-swin"):
        capture(build(name), _example(name), output=NETWORKS[name].output)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "maxvit_t"])
def test_both_ways_offer_the_same_cuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = captured(name)

    def refuse(graph: fx.Graph) -> fx.Graph:
        raise NotPureError("for this test")

    monkeypatch.setattr(import_module("hapi.model.capture"), "pure_graph", refuse)
    long = capture(build(name), _example(name), name=name)
    assert [(cut.name, cut.shapes, cut.dtypes) for cut in short.cuts] == [
        (cut.name, cut.shapes, cut.dtypes) for cut in long.cuts
    ]


def _example(name: str) -> dict[str, Tensor] | tuple[Tensor, ...]:
    network = NETWORKS[name]
    example = network.inputs(1)
    return dict(zip(network.names, example, strict=True)) if network.names else example
