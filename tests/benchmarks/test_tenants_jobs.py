"""Tenants' jobs: different tasks, spans that cover each sample once, and telling right features from wrong ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.bench.rows import Row
from benchmarks.tenants import parts
from benchmarks.tenants.clients import JobOutcome, differs, spans_of
from benchmarks.tenants.jobs import MOST_CUT_BYTES, Network, Task, TenantJob, tasks
from benchmarks.tenants.promises import broken, judged
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
    spans = list(spans_of(job.task.cut, job.indices, 32))
    assert [index for span in spans for index in span.indices] == list(range(samples))
    assert [span.number for span in spans] == list(range(len(spans)))


def test_features_that_differ_by_more_than_rounding_are_told(networks: list[Network]) -> None:
    outcome = JobOutcome(TenantJob("a", Task(networks[0], "output"), (0, 1)))
    outcome.prints = {0: (1.00001, 10.0), 1: (2.0, 10.0)}
    assert differs(outcome, {0: (1.0, 10.0), 1: (2.0, 10.0)}) is None
    said = differs(outcome, {1: (2.1, 10.0)})
    assert said is not None
    assert "sample 1" in said


def test_jobs_that_failed_do_not_make_the_others_fast(networks: list[Network], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [TenantJob(name, Task(networks[0], "output"), (0, 1)) for name in "abc"]
    alone = [parts.Alone(job, JobOutcome(job, seconds=2.0), 1.0) for job in jobs]
    died: Any = SimpleNamespace(address=None, is_alive=False, kills=1, peak_bytes=None, counters=dict)

    def together(address: object, asked: list[TenantJob], **more: object) -> list[JobOutcome]:
        return [JobOutcome(asked[0], seconds=2.2), *(JobOutcome(job, error="killed") for job in asked[1:])]

    monkeypatch.setattr(parts, "run_together", together)
    found = parts.mixed(died, alone)
    assert found["failures"] == 2
    assert (found["samples"], found["alone_seconds"]) == (2, 2.0)
    assert found["makespan_to_alone"] == found["mean_slowdown"] == pytest.approx(1.1)


def test_what_is_promised_is_judged_and_broken_promises_of_policies_never_fail_the_command() -> None:
    good = {"part": "mixed", "makespan_to_alone": 1.1, "worst_to_mean": 1.2, "failures": 0}
    slow = good | {"makespan_to_alone": 1.3, "worst_to_mean": None, "failures": 2}
    same = {"part": "same", "makespan_to_alone": 1.2, "computed_per_sample": 1.01}
    vanish = {"part": "vanish", "worst_batches_after": 3.0, "held_bytes": 1}
    rows = [Row("tenants", "ours").filled(**each) for each in (good, slow, same, vanish)]
    assert [broken(row) for row in rows] == [
        [],
        ["failures", "makespan", "fairness"],
        ["computed twice"],
        ["work goes on", "memory held"],
    ]
    theirs = Row("tenants", "whole").filled(**slow)
    judgement = judged([rows[0], rows[1], theirs, theirs.filled(failed=True, note="the server did not start")])
    assert [row.get("holds") for row in judgement[:3]] == ["yes", *["failures, makespan, fairness"] * 2]
    assert [row.failed for row in judgement] == [False, True, False, True]
