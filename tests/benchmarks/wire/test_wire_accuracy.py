"""Codecs judged by heads: the exact codec changes nothing, and a codec that destroys features is found out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.bench.run import Bench
from benchmarks.wire.accuracy import Settings, _compare, chosen_cuts, judge, round_trip
from hapi.model import Graph, capture


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
    return capture(network, torch.randn(2, 3, 8, 8), name="small")


def test_cuts_are_spread_and_end_with_the_output(graph: Graph) -> None:
    assert [cut.name for cut in chosen_cuts(graph, ["1"], 3)] == ["1"]
    few = chosen_cuts(graph, [], 2)
    assert len(few) == 2
    assert few[-1].name == "output"
    assert "input" not in [cut.name for cut in chosen_cuts(graph, [], 100)]


@pytest.mark.parametrize(("codec", "error"), [("float32", 0.0), ("bfloat16", 0.01), ("int8", 0.01)])
def test_tensors_arrive_as_the_codec_has_them(graph: Graph, codec: str, error: float) -> None:
    cut = graph.cut("1")
    tensors = (torch.randn(6, *cut.shapes[0]).relu(),)
    arrived, size, encode, decode = round_trip(cut, codec, tensors)
    assert (arrived[0] - tensors[0]).norm() <= error * tensors[0].norm()
    assert size > 0
    assert encode > 0
    assert decode > 0


def test_a_head_finds_what_features_tell_and_no_more() -> None:
    labels = torch.arange(60) % 3
    telling = nn.functional.one_hot(labels, 3).float() + 0.1 * torch.randn(
        60, 3, generator=torch.Generator().manual_seed(0)
    )
    judged = judge(telling, labels, seeds=3, epochs=60)
    assert judged == judge(telling.clone(), labels, seeds=3, epochs=60)
    assert min(judged.accuracies) > 0.9
    destroyed = judge(torch.zeros(60, 3), labels, seeds=3, epochs=60)
    assert max(destroyed.accuracies) < 0.7
    assert min(destroyed.losses) > max(judged.losses)


def test_features_that_a_codec_cannot_hold_are_told() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    graph = capture(network, torch.randn(2, 3, 2, 2), name="small")
    settings = Settings(("small",), ("output",), ("float16",), 20, None, "none", 2, 1, 1)
    with Bench("codecs") as bench:
        _compare(bench, settings, "small", graph, 1e-12 * torch.randn(20, 3, 2, 2), torch.arange(20) % 2)
    exact, half = bench.rows
    assert exact.note == ""
    assert "float16 cannot tell such values" in half.note
