"""Tenants' jobs: different tasks, spans that cover each sample once, and telling right features from wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tenants.clients import JobOutcome, _spans, differs
from benchmarks.tenants.jobs import MOST_CUT_BYTES, Network, Task, TenantJob, tasks
from hapi.data import TransformSpec
from hapi.model import capture


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    made = []
    for seed, width in ((0, 4), (1, 8)):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten()]
        graph = capture(nn.Sequential(*layers), torch.randn(2, 3, 16, 16), name=f"net{width}")
        made.append(Network(graph, TransformSpec.from_json([{"name": "ToImage", "args": {}}])))
    return made


def test_tasks_differ_and_begin_with_whole_networks(networks: list[Network]) -> None:
    found = tasks(networks, 6)
    keys = [(task.network.graph.digest, task.cut) for task in found]
    assert len(set(keys)) == len(keys)
    assert [task.cut for task in found[:2]] == ["output", "output"]
    for task in found:
        assert task.network.graph.cut(task.cut).bytes_per_sample <= MOST_CUT_BYTES
    assert tasks(networks, 3) == found[:3]


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 100])
def test_spans_cover_each_sample_once(networks: list[Network], samples: int) -> None:
    job = TenantJob("a", Task(networks[0], "output"), tuple(range(samples)))
    spans = list(_spans(job, 32))
    assert [index for span in spans for index in span.indices] == list(range(samples))
    assert [span.number for span in spans] == list(range(len(spans)))


def test_features_that_differ_by_more_than_rounding_are_told(networks: list[Network]) -> None:
    outcome = JobOutcome(TenantJob("a", Task(networks[0], "output"), (0, 1)))
    outcome.prints = {0: (1.00001, 10.0), 1: (2.0, 10.0)}
    assert differs(outcome, {0: (1.0, 10.0), 1: (2.0, 10.0)}) is None
    said = differs(outcome, {1: (2.1, 10.0)})
    assert said is not None
    assert "sample 1" in said
