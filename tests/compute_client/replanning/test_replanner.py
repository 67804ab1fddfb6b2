"""Plans follow their rates within a few spans, tell why, do not flap, and are left alone where nothing is learned."""

from __future__ import annotations

from typing import Any

import pytest

from compute_client.replanning.rates import Rates
from compute_client.replanning.replanner import NEW_GAIN
from hapi.plan import Profile
from tests.compute_client.replanning.simulated_job import SimulatedJob, shares
from tests.profiler.example_profiles import profile_of

FAST, SLOW = 100e6, 10e6
SETTLED = 5
"""Spans after a change, of those that were begun since."""


def profile(bits_per_s: float = FAST) -> Profile:
    """Photographs of 110 kB, and a network whose cuts get smaller and dearer."""
    rows = [
        (110_000.0, 0.0005, 0.030),
        (200_000.0, 0.008, 0.022),
        (100_000.0, 0.012, 0.016),
        (50_000.0, 0.018, 0.009),
        (4_000.0, 0.024, 0.0005),
    ]
    return profile_of(*rows, bits_per_s=bits_per_s, samples=100_000, batch_size=32)


def after_five_spans(job: SimulatedJob, since: float, begun: int) -> float:
    """Samples per second once five of the spans that were begun after a change have come out."""
    out = [at for at, _ in job.finished]
    return job.rate(max(since, out[begun + SETTLED]))


CHANGES = [
    ("bits_per_s", SLOW, FAST, "the link gives"),
    ("server_slowness", 4.0, 1.0, "the server takes"),
    ("tenants", 2, 1, "of the server's time is this job's"),
    ("client_slowness", 3.0, 1.0, "the client takes"),
]


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("what", "worse", "usual", "said"), CHANGES, ids=[change[0] for change in CHANGES])
def test_the_mix_follows(what: str, worse: Any, usual: Any, said: str, noise: float) -> None:
    job = SimulatedJob(profile(), noise=noise)
    job.run(30)
    assert job.rate(5) > 0.9 * job.limit()
    assert not job.plan.history
    for value in (worse, usual):
        setattr(job.world, what, value)
        since, begun, known = job.now, job.begun, len(job.plan.history)
        job.run(60)
        if what != "client_slowness":
            assert after_five_spans(job, since, begun) > 0.85 * job.limit()
        assert job.rate(since + 30) > 0.85 * job.limit()
        changes = job.plan.history[known:]
        assert 1 <= len(changes) <= 4
        assert said in changes[0].reason
        assert "samples/s are predicted" in changes[0].reason
        assert since < changes[0].at < since + 30
        assert changes[-1].after == job.plan.cuts
        assert changes[0].before != changes[0].after


@pytest.mark.parametrize(("replan", "part"), [(True, 0.85), (False, 0.75)])
def test_a_plan_that_is_kept_gives_a_slow_link_less_all_the_same(replan: bool, part: float) -> None:
    job = SimulatedJob(profile(), replan=replan)
    job.run(20)
    job.world.bits_per_s = SLOW
    job.run(60)
    assert bool(job.plan.history) is replan
    assert job.rate(50) > part * job.limit()


@pytest.mark.parametrize("bits_per_s", [5e6, 20e6, 50e6, FAST])
def test_scatter_changes_no_plan(bits_per_s: float) -> None:
    job = SimulatedJob(profile(bits_per_s), noise=0.2)
    job.run(150)
    assert len(job.plan.history) <= 1
    assert job.rate(20) > 0.88 * job.limit()


def test_it_is_never_slower_than_no_pushdown() -> None:
    job = SimulatedJob(profile(1e9), noise=0.1)
    job.run(20)
    job.world.server_slowness = 8.0
    since, begun = job.now, job.begun
    job.run(120)
    assert after_five_spans(job, since, begun) > 0.95 / 0.030
    assert shares(job.plan)["input"] > 0.8


def test_a_wrong_profile_is_put_right() -> None:
    job = SimulatedJob(profile())
    job.world.server_slowness, job.world.bits_per_s = 3.0, 2 * FAST
    job.run(60)
    assert job.rate(30) > 0.88 * job.limit()
    assert job.plan.history


def test_a_server_that_says_nothing_leaves_the_plan_as_it_is() -> None:
    job = SimulatedJob(profile(), reports=False)
    job.run(10)
    job.world.bits_per_s = SLOW
    job.run(60)
    assert not job.plan.history
    assert job.probes == 0


@pytest.mark.parametrize("bits_per_s", [2e6, 5e6, 10e6, 30e6, 60e6, 90e6])
def test_cuts_that_were_used_are_taken_where_they_are_nearly_as_good(bits_per_s: float) -> None:
    replanner = SimulatedJob(profile()).replanner
    used = {*shares(replanner.plan), "input", "output"}
    rates = Rates(bits_per_s)
    best = replanner._solved(rates)
    found = replanner._familiar(rates, best)
    pace, best_pace = replanner._pace(rates, found.cuts), replanner._pace(rates, best.cuts)
    assert pace <= NEW_GAIN * best_pace
    assert found.limit_seconds == best.limit_seconds
    if not set(shares(found)) <= used:
        assert replanner._pace(rates, replanner._solved(rates, used).cuts) >= NEW_GAIN * best_pace


def test_the_link_is_probed_only_where_more_of_it_would_help() -> None:
    idle = SimulatedJob(profile_of((100_000, 0.001, 0.03), (100, 0.03, 0.001), bits_per_s=1e9, samples=1000))
    idle.run(60)
    assert idle.probes == 0
    useful = SimulatedJob(profile(SLOW))
    useful.run(60)
    assert 0 < useful.probes < 12


def test_the_history_is_bounded_and_says_both_mixes() -> None:
    job = SimulatedJob(profile())
    job.run(20)
    job.world.bits_per_s = SLOW
    job.run(40)
    first = job.plan.history[0]
    assert "% input" in str(first)
    assert " -> " in str(first)
    document = job.plan.to_json()
    assert document["history"][0]["before"] == [share.to_json() for share in first.before]
    assert str(first) in str(job.plan)
    assert job.plan.predicted_seconds is not None
    assert job.plan.limit_seconds is not None
    assert job.plan.limit_seconds <= job.plan.predicted_seconds * (1 + 1e-6)
