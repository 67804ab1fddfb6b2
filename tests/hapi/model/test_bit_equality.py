"""suffix(prefix(x)) is the backbone, to the last bit, at every cut of every network."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from networks import NETWORKS, build, captured, eager
from torch import Tensor

from hapi.errors import UnknownCutError
from hapi.model import Cut, Graph, Program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=NETWORKS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("batch", [2, 1, 5])
def test_prefix_then_suffix_is_the_backbone(name: str, batch: int) -> None:
    graph = captured(name)
    inputs = NETWORKS[name].inputs(batch)
    expected = eager(name, inputs)
    assert expected.isfinite().all()
    assert expected.std() > 0
    with torch.no_grad():
        assert torch.equal(graph(*inputs), expected)
        values = all_carried(graph, inputs)
        for cut in graph.cuts if batch == 2 else spread(graph):
            prefix, suffix = graph.split(cut)
            carried = prefix(*inputs)
            check_description(cut, carried, batch)
            for tensor, value in zip(carried, cut.values, strict=True):
                assert torch.equal(tensor, values[value]), f"{cut.name}: prefix differs in {value}"
            assert torch.equal(suffix(*carried), expected), f"suffix after {cut.name}"
            if not all(tensor.is_contiguous() for tensor in carried):
                # Over a network tensors arrive contiguous, whatever layout they had.
                arrived = [tensor.contiguous() for tensor in carried]
                assert torch.equal(suffix(*arrived), expected), f"suffix after {cut.name}, contiguous"


def test_from_one_cut_to_a_later_one_is_the_later_prefix(name: str) -> None:
    """As tensors arrive that were kept meanwhile: contiguous, whatever layout they had."""
    graph, inputs = captured(name), NETWORKS[name].inputs(2)
    cuts = spread(graph)
    with torch.no_grad():
        values = all_carried(graph, inputs)
        for first, last in itertools.pairwise(dict.fromkeys(cuts)):
            try:
                part = graph.between(first, last)
            except UnknownCutError as error:
                assert "does not carry" in str(error)  # noqa: PT017 - allowed, where the later cut carries an input
                assert len(graph.inputs) > 1
                continue
            found = part(*(values[value].contiguous() for value in first.values))
            assert isinstance(found, tuple)
            for tensor, value in zip(found, last.values, strict=True):
                assert torch.equal(tensor, values[value]), f"{first.name} to {last.name} differs in {value}"


def test_a_cut_follows_every_block(name: str) -> None:
    graph, block = captured(name), NETWORKS[name].block
    ends = [path for path, module in build(name).named_modules() if re.fullmatch(block, type(module).__name__)]
    assert len(ends) > 1, f"{name} has no modules of class {block}"
    indices = [graph.cut(path).index for path in ends]
    assert indices == sorted(set(indices))


def test_cuts_run_from_input_to_output_with_unique_names(name: str) -> None:
    graph = captured(name)
    assert [cut.index for cut in graph.cuts] == list(range(len(graph.cuts)))
    assert (graph.cuts[0].name, graph.cuts[-1].name) == ("input", "output")
    assert graph.cuts[0].shapes == tuple(spec.shape for spec in graph.inputs)
    assert graph.cuts[-1].shapes == (graph.output.shape,)
    names = [known for cut in graph.cuts for known in (cut.name, *cut.aliases)]
    assert len(set(names)) == len(names)
    for cut in graph.cuts:
        assert all(graph.cut(known) is cut for known in (cut.name, cut.index, cut, *cut.aliases))


def test_a_cut_carries_one_stream_or_fewer_bytes_than_any_before(name: str) -> None:
    """Beside one stream of activations only a mask is carried: never queries, positions or attention weights."""
    fewest = captured(name).cuts[0].bytes_per_sample
    for cut in captured(name).cuts[1:-1]:
        streams = [dtype for dtype in cut.dtypes if dtype.is_floating_point]
        assert len(streams) == 1 or cut.bytes_per_sample < fewest, cut
        fewest = min(fewest, cut.bytes_per_sample)


def all_carried(graph: Graph, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Everything any cut carries, from one run of the whole graph."""
    names = tuple(dict.fromkeys(value for cut in graph.cuts for value in cut.values))
    results = Program(graph, "everything", graph.input_names, names)(*inputs)
    return dict(zip(names, results, strict=True))


def spread(graph: Graph) -> list[Cut]:
    """Some six cuts from first to last."""
    step = max(1, len(graph.cuts) // 5)
    return [*graph.cuts[::step], graph.cuts[-1]]


def check_description(cut: Cut, carried: tuple[Tensor, ...], batch: int) -> None:
    assert tuple(tuple(tensor.shape) for tensor in carried) == tuple((batch, *shape) for shape in cut.shapes)
    assert tuple(tensor.dtype for tensor in carried) == cut.dtypes
    assert sum(tensor.nbytes for tensor in carried) == batch * cut.bytes_per_sample
