"""What `hapi bench engine` makes of an engine that compiles, one that gains nothing, and one that cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.baselines.eager import PlainRunError, seconds_of
from benchmarks.bench.rows import Row
from benchmarks.scenarios.engine import EAGER, PeerError, _most, ours
from hapi.engine.agreement import outputs
from hapi.engine.compiler import Answer
from hapi.model import capture


class Compiler:
    """Answers what it was told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def wait(self, *arguments: object) -> Answer:
        return self.answer


@pytest.fixture(scope="module")
def graph():
    return capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.zeros(2, 3, 8, 8), name="small")


def test_code_that_is_no_faster_is_a_fact_and_folded_runs(graph) -> None:
    answer = Answer(None, "compiled code is no faster (0.98 times)", 0.98, is_made=True)
    run, note = ours(graph, "float32", Compiler(answer))
    assert note == "runs as folded: compiled code is no faster (0.98 times)"
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(run(images), outputs(graph.whole(images))[0])


def test_what_cannot_be_compiled_fails(graph) -> None:
    with pytest.raises(PeerError, match="no compiler"):
        ours(graph, "float32", Compiler(Answer(None, "no compiler")))


def test_rows_say_how_far_an_engine_could_get() -> None:
    rows = [
        Row("engine", EAGER, "a").filled(seconds=4.0, limit_seconds=2.0),
        Row("engine", "compiled", "a").filled(seconds=3.0, limit_seconds=1.0),
        Row("engine", "compiled", "b").filled(seconds=3.0, limit_seconds=1.0),
    ]
    assert [row.get("most_of_eager") for row in _most(rows)] == [2.0, 4.0, None]


def test_a_plain_process_that_fails_says_why() -> None:
    with pytest.raises(PlainRunError, match="torchvision:nothing in a process of its own: it ended with 1"):
        seconds_of("torchvision:nothing", 1, 1, 1)
