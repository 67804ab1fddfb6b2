"""A pass pauses between its operations, its numbers stay the same, and its clock stands still."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hapi.model import Graph, capture
from hapi.model.pauses import pause_of_thread, pausing, processor_seconds, undisturbed, working_seconds


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Tanh()).eval()
    return capture(network, torch.randn(2, 3, 8, 8), name="small")


def test_a_pass_that_pauses_computes_the_same(graph: Graph) -> None:
    program = graph.split(graph.cut("output"))[0]
    batch, other = torch.randn(3, 3, 8, 8), torch.randn(1, 3, 8, 8)
    expected, others = program(batch), []

    def look() -> bool:
        others.append(program(other))
        return True

    with torch.inference_mode(), pausing(look):
        found = program(batch)
    assert torch.equal(found[0], expected[0])
    assert len(others) == len(program.nodes), "once before each operation, and not inside of a pause"
    assert all(torch.equal(one[0], others[0][0]) for one in others)


def test_what_is_undisturbed_does_not_pause(graph: Graph) -> None:
    def never() -> bool:
        raise AssertionError("a pause")

    program = graph.split(graph.cut("output"))[0]
    with pausing(never):
        with undisturbed():
            program(torch.randn(1, 3, 8, 8))
        assert pause_of_thread() is not None
    assert pause_of_thread() is None


@pytest.mark.parametrize(("clock", "of"), [(working_seconds, "perf_counter"), (processor_seconds, "thread_time")])
def test_the_clocks_stand_still_in_pauses_in_which_something_was_done(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float], of: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, of, lambda: now[0])
    program = graph.split(graph.cut("output"))[0]
    is_work = [True, False]

    def look() -> bool:
        now[0] += 1.0
        return bool(is_work and is_work.pop(0))

    started = clock()
    with pausing(look):
        program(torch.randn(1, 3, 8, 8))
    assert now[0] == len(program.nodes)
    assert clock() - started == len(program.nodes) - 1


def test_an_error_in_a_pause_ends_the_pass_and_leaves_nothing_behind(graph: Graph) -> None:
    def look() -> bool:
        raise RuntimeError("in a pause")

    program = graph.split(graph.cut("output"))[0]
    with pytest.raises(RuntimeError, match="in a pause"), pausing(look):
        program(torch.randn(1, 3, 8, 8))
    assert pause_of_thread() is None
    program(torch.randn(1, 3, 8, 8))
