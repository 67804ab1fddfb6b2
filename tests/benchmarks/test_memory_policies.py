"""The policies that ours is compared with, and control groups as files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.bench.rows import Row
from benchmarks.cgroup import MemoryGroup, NoControlGroupError, memory_group
from benchmarks.policies.fixed import FixedPolicy
from benchmarks.policies.linear import LEAST, LinearProgramPolicy, sample_bytes, solve
from benchmarks.policies.server import policy_of
from benchmarks.scenarios.memory import with_best_fixed
from hapi.errors import InputError, MemoryBudgetError
from hapi.model import capture
from storage_server.extraction.engine import Prefix
from storage_server.extraction.sizing import Waiting

MB = 10**6


def prefix(digest: str = "digest") -> Prefix:
    graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU()).eval(), torch.randn(2, 3, 2, 2))
    return Prefix.of(graph, "output", "cpu", digest)


def request(part: Prefix, samples: int, tenant: str = "alice") -> Waiting:
    return Waiting(tenant, part, samples, sample_bytes=1, share_bytes=1)


def test_the_published_log_s_example() -> None:
    assert solve([2_974_285, 2_974_285], [0, 0], [1000, 1000], 10**10) == [1000, 1000]


def test_one_gets_all_one_a_part_and_the_rest_the_minimum() -> None:
    batches = solve([MB] * 4, [10 * MB] * 4, [100] * 4, 4 * 10 * MB + (100 + 60 + 2 * LEAST) * MB)
    assert batches is not None
    assert sorted(batches) == [LEAST, LEAST, 60, 100], "a vertex: no fairness"


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 300), st.integers(1, 400)), min_size=1, max_size=6),
    st.integers(0, 50_000),
)
def test_the_program_stays_within_its_own_estimate(requests: list[tuple[int, int, int]], free: int) -> None:
    sizes, weights, requested = ([one[part] * (MB if part < 2 else 1) for one in requests] for part in range(3))
    batches = solve(sizes, weights, requested, free * MB)
    least = sum(min(LEAST, most) * size for most, size in zip(requested, sizes, strict=True))
    if batches is None:
        assert least + sum(weights) > free * MB
    else:
        assert all(min(LEAST, most) - 1 <= batch <= most for batch, most in zip(batches, requested, strict=True))
        assert sum(batch * size for batch, size in zip(batches, sizes, strict=True)) <= free * MB - sum(weights) + MB


def test_it_is_solved_anew_when_requests_change_and_not_before() -> None:
    free = [10 * MB]
    part = prefix()
    policy = LinearProgramPolicy(free=lambda device: free[0])
    alone = policy.decide(part, [request(part, 1000)])
    assert alone.samples == 1000
    free[0] = part.memory.weight_bytes + 30 * sample_bytes(part)
    assert policy.decide(part, [request(part, 1000)]).samples == 1000
    assert policy.decide(part, [request(part, 999)]).samples == 30
    free[0] = 0
    assert policy.decide(part, [request(part, 998)]).samples == LEAST, "removed from the program"


def test_a_sample_counts_every_output_as_if_none_were_freed() -> None:
    # input 12 floats; the flattened one is a view; linear and ReLU 4 floats each
    assert sample_bytes(prefix()) == (12 + 4 + 4) * 4


@pytest.mark.parametrize("policy", [FixedPolicy(8), LinearProgramPolicy()])
def test_running_out_of_memory_ends_the_request(policy: Any) -> None:
    with pytest.raises(MemoryBudgetError, match="a batch of 8"):
        policy.failed(prefix(), 8)


def test_fixed_is_fixed_and_whole_is_the_request() -> None:
    part, other = prefix(), prefix("other")
    assert policy_of("fixed:7").decide(part, [request(part, 1000)]).samples == 7
    assert policy_of("whole").decide(part, [request(part, 64), request(other, 999)]).samples == 64
    for wrong in ("fixed:0", "fixed", "fixed:x", "ours"):
        with pytest.raises(InputError, match="fixed:N, whole or paper-lp"):
            policy_of(wrong)


def test_rates_are_compared_with_the_best_fixed_batch_that_survived() -> None:
    def row(system: str, rate: float, survived: str = "yes", model: str = "a") -> Row:
        return Row("memory", system, model, extra={"images_per_s": rate, "survived": survived})

    rows = [
        row("ours", 9),
        row("fixed-4", 6),
        row("fixed-8", 10),
        row("whole", 99, "killed"),
        row("ours", 5, model="b"),
    ]
    assert [found.get("ratio_to_best_fixed") for found in with_best_fixed(rows)] == [0.9, 0.6, 1.0, None, None]


@pytest.mark.parametrize("version", [1, 2])
def test_groups_of_both_versions(tmp_path: Path, version: int) -> None:
    group = MemoryGroup(tmp_path, version)
    group.limit(1000)
    names = SimpleNamespace(limit="memory.limit_in_bytes", peak="memory.max_usage_in_bytes", kills="memory.oom_control")
    stat = "rss 1\ntotal_rss 7\n"
    if version == 2:
        names, stat = SimpleNamespace(limit="memory.max", peak="memory.peak", kills="memory.events"), "anon 7\nfile 9\n"
    assert (tmp_path / names.limit).read_text() == "1000"
    (tmp_path / names.peak).write_text("900\n")
    (tmp_path / names.kills).write_text("under_oom 0\noom_kill 2\n")
    (tmp_path / "memory.stat").write_text(stat)
    assert (group.peak_bytes, group.kills, group.anonymous_bytes) == (900, 2, 7)
    assert group.command()[:2] == ["sh", "-c"]


def test_where_no_group_can_be_made_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoControlGroupError, match="Run this as root"), memory_group(1000, mount=tmp_path / "absent"):
        pass
