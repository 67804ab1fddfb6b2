"""Where graphs are cut: small awkward modules, each with one thing that a naive cut would get wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hapi.errors import UnknownCutError
from hapi.model import Cut, Graph, capture


def check_every_cut(graph: Graph, module: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = module(*inputs)
        for cut in graph.cuts:
            prefix, suffix = graph.split(cut)
            assert torch.equal(suffix(*prefix(*inputs)), expected), cut


def names(graph: Graph) -> list[str]:
    return [cut.name for cut in graph.cuts]


class Masked(nn.Module):
    """Attention over 6 places: a (6, 6) float mask is made from 6 flags, positions from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(6, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor, flags: Tensor) -> Tensor:
        mask = (1.0 - (flags[:, None, :] * flags[:, :, None]).float()) * -10
        x = x + self.positions(torch.arange(x.shape[1]).expand(x.shape[0], -1))
        for block in self.blocks:
            y = block(x)
            x = torch.softmax(y @ y.transpose(1, 2) + mask, -1) @ x
        return x


def test_a_mask_is_made_again_from_its_flags_and_positions_from_nothing() -> None:
    module = Masked()
    flags = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    graph = capture(module, (torch.randn(3, 6, 4), flags))
    check_every_cut(graph, module, torch.randn(3, 6, 4), flags)
    inner = graph.cuts[1:-1]
    assert len(inner) >= 2
    for cut in inner:
        # 6 flags of int64 weigh less than a mask of 36 floats
        assert cut.shapes == ((6, 4), (6,))
        assert cut.dtypes == (torch.float32, torch.int64)
        assert cut.bytes_per_sample == 6 * 4 * 4 + 6 * 8


class Windows(nn.Module):
    """Works on windows folded into the batch dimension, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.inside(x.reshape(-1, 2, 4))
        return self.after(windows.tanh().reshape(x.shape[0], 8, 4))


def test_no_cut_where_the_batch_is_folded_into_windows() -> None:
    module = Windows()
    graph = capture(module, torch.randn(1, 8, 4))
    check_every_cut(graph, module, torch.randn(5, 8, 4))
    assert all(shape[0] == 8 for cut in graph.cuts for shape in cut.shapes)


class Bottleneck(nn.Module):
    """A long residual branch that is narrower than its shortcut, and one that together with it is narrowest so far."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, narrow)
        self.expand = nn.Linear(narrow, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.reduce(x).relu())


def test_inside_a_residual_block_only_a_new_minimum_is_a_cut() -> None:
    module = nn.Sequential(nn.Linear(64, 16), Bottleneck(16, 4), Bottleneck(16, 2), nn.Linear(16, 3))
    graph = capture(module, torch.randn(1, 64))
    check_every_cut(graph, module, torch.randn(4, 64))
    assert names(graph) == ["input", "0", "1", "2", "output"]


class Distill(nn.Module):
    """Two streams that are together smaller than anything before them, with heavy work on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 4), nn.Linear(64, 4)
        self.up_left, self.up_right = nn.Linear(4, 64), nn.Linear(4, 64)
        self.head = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.head(self.up_left(left) * self.up_right(right))


def test_two_streams_are_a_cut_where_they_are_smaller_than_all_before() -> None:
    module = Distill()
    graph = capture(module, torch.randn(1, 64))
    check_every_cut(graph, module, torch.randn(4, 64))
    assert graph.cut("right").shapes == ((4,), (4,))
    assert graph.cut("right").bytes_per_sample == 32


class Twice(nn.Module):
    """One module called twice, and modules with the names that the first and last cuts have."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(4, 6)
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6))
        self.output = nn.Linear(6, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.output(self.shared(self.shared(self.input(x)))))


def test_names_stay_unique_for_shared_modules_and_reserved_words() -> None:
    module = Twice()
    graph = capture(module, torch.randn(1, 4))
    check_every_cut(graph, module, torch.randn(3, 4))
    assert names(graph)[0] == "input"
    assert names(graph)[-1] == "output"
    assert {"input_2", "shared", "shared@2", "output_2"} <= set(names(graph))
    assert graph.cut("input").shapes == ((4,),)
    assert graph.cut("output").shapes == ((2,),)
    assert len(set(names(graph))) == len(graph.cuts)


class LateInput(nn.Module):
    """Reads its input again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.end = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.cat([self.body(x), x], 1))


def test_an_input_that_is_read_late_is_carried() -> None:
    module = LateInput()
    graph = capture(module, torch.randn(1, 4))
    check_every_cut(graph, module, torch.randn(3, 4))
    assert graph.cut("body").shapes == ((4,), (4,))


class InPlace(nn.Module):
    """Writes into views of its own activations, which liveness must not take for separate values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        part = y[:, 2:5]
        kept = y * 1.0
        part.mul_(3).add_(1)
        y[:, 0] = kept[:, 1]
        z = self.second(y).relu_()
        z += y
        return z - kept


def test_writes_into_views_are_seen_by_everything_that_shares_them() -> None:
    module = InPlace()
    graph = capture(module, torch.randn(1, 4))
    check_every_cut(graph, module, torch.randn(3, 4))
    assert not any(node.op.split(".")[1].endswith("_") for node in graph.nodes)


def test_an_identity_has_input_and_output() -> None:
    graph = capture(nn.Identity(), torch.randn(1, 3))
    x = torch.randn(2, 3)
    assert names(graph) == ["input", "output"]
    for cut in graph.cuts:
        prefix, suffix = graph.split(cut)
        assert torch.equal(suffix(*prefix(x)), x)


def test_cuts_are_found_by_name_index_alias_and_themselves() -> None:
    graph = capture(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)), torch.randn(1, 4))
    assert names(graph) == ["input", "0", "output"]
    assert graph.cut("0.1") is graph.cut(1) is graph.cut(graph.cuts[1])
    assert graph.cut(-1).name == "output"


@pytest.mark.parametrize("wrong", ["layer9", "", "0.7", 3, -4])
def test_an_unknown_cut_is_refused_with_those_there_are(wrong: str | int) -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(1, 4), name="tiny")
    with pytest.raises(UnknownCutError, match="tiny has no cut") as caught:
        graph.cut(wrong)
    assert any(f" {cut.name}" in str(caught.value) for cut in graph.cuts)


def test_a_cut_of_another_graph_is_found_by_its_name() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(1, 4))
    twin = Cut("0", 7, ((9,),), (torch.float32,), 36)
    assert graph.cut(twin) is graph.cuts[1]


def test_between_cuts_only_the_earlier_may_be_given() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(2, 4), name="steps")
    part = graph.between("0", "1")
    assert len(part.nodes) == 1
    assert (part.title, part.inputs, part.outputs) == (
        "part of steps from 0 to 1", graph.split("0")[0].outputs, graph.split("1")[0].outputs,
    )  # fmt: skip
    for start, end in (("1", "0"), ("1", "1"), ("output", "input")):
        with pytest.raises(UnknownCutError, match="does not come after"):
            graph.between(start, end)
    with pytest.raises(UnknownCutError, match="has no cut 'nowhere'"):
        graph.between("nowhere", "1")
