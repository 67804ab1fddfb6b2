"""The planner: the optimum is exact, a mix is never worse than what it mixes, and reasons are true."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from example_profiles import profile_of, profiles
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi.errors import InputError, ProfileError
from hapi.plan import Plan, Profile
from profiler import POLICIES, Pipeline, plan
from profiler.pipeline import WORTH
from profiler.policies import LEAST_GAIN, MOST_GIVEN, TIE, solve


def brute_force_pace(costs: np.ndarray) -> float:
    """The least pace of any mix, by solving every square subsystem: k cuts, k resources equally busy."""
    best = float(costs.max(axis=0).min())
    for count in (2, 3):
        for cuts in itertools.combinations(range(costs.shape[1]), count):
            for resources in itertools.combinations(range(3), count):
                system = np.zeros((count + 1, count + 1))
                system[:count, :count] = costs[np.ix_(resources, cuts)]
                system[:count, count] = -1
                system[count, :count] = 1
                if np.linalg.matrix_rank(system) <= count:
                    continue
                shares = np.linalg.solve(system, np.append(np.zeros(count), 1.0))[:count]
                if (shares >= -1e-12).all():
                    best = min(best, float((costs[:, cuts] @ shares).max()))
    return best


def steady(profile: Profile, made: Plan) -> float:
    """Seconds per sample of the busiest resource under a plan."""
    pipeline = Pipeline.of(profile)
    shares = sum(cut.share * pipeline.only(cut.name) for cut in made.cuts)
    return float(pipeline.busy_seconds(np.asarray(shares)).max())


@settings(max_examples=150, deadline=None)
@given(profiles())
def test_the_limit_is_the_exact_optimum(profile: Profile) -> None:
    exact = brute_force_pace(Pipeline.of(profile).costs)
    limit = plan(profile, "mix").limit_seconds / (profile.epochs * max(1, profile.samples))
    assert limit == pytest.approx(exact, rel=1e-6)


@settings(max_examples=150, deadline=None)
@given(profiles())
def test_a_mix_is_never_worse_than_any_single_cut(profile: Profile) -> None:
    mix = plan(profile, "mix")
    for policy in ["none", "all", "paper", "paper-v1", "single", *(cut.name for cut in profile.cuts)]:
        other = plan(profile, policy)
        assert mix.predicted_seconds <= other.predicted_seconds * (1 + TIE + 1e-6), policy
        assert other.predicted_seconds >= other.limit_seconds
    assert sum(cut.share for cut in mix.cuts) == pytest.approx(1)
    assert len(mix.cuts) <= 3


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_single_is_the_best_single_cut_and_of_equals_the_smallest(profile: Profile) -> None:
    single = plan(profile, "single")
    times = {cut.name: plan(profile, cut.name).predicted_seconds for cut in profile.cuts}
    enough = (1 + TIE) * min(times.values())
    assert single.predicted_seconds <= enough
    equals = [cut.out_bytes for cut in profile.cuts if times[cut.name] <= enough]
    assert profile.cut(single.cuts[0].name).out_bytes == min(equals)


@pytest.mark.parametrize(
    ("raw_bytes", "raw_seconds", "share", "seconds"),
    [
        # four seconds of the link for one of the server: as much as may be given
        (4e6, 0.004, 1 - (1 + MOST_GIVEN) * 0.8, (1 + MOST_GIVEN) * 0.8),
        (4e6, 0.020, 0.03, 1 - LEAST_GAIN),  # no more than is left of what a mix must gain
        (2e6, 0.010, 1 / 11, 1 / 1.1),  # two for one: not worth it
    ],
)
def test_time_is_given_for_far_less_of_the_link(
    raw_bytes: float, raw_seconds: float, share: float, seconds: float
) -> None:
    profile = profile_of((raw_bytes, 0, raw_seconds), (0, 0.001, 0), samples=0)
    mix = plan(profile)
    assert mix.limit_seconds == pytest.approx(0.001 * raw_seconds / (raw_seconds + 0.001))
    assert mix.predicted_seconds == pytest.approx(seconds * 0.001, rel=1e-3)
    assert {cut.name: cut.share for cut in mix.cuts}["input"] == pytest.approx(share, rel=1e-2)


@settings(max_examples=150, deadline=None)
@given(profiles(max_cuts=12))
def test_the_second_program_costs_no_more_than_its_bytes_are_worth(profile: Profile) -> None:
    pipeline = Pipeline.of(profile)
    cuts = list(range(len(pipeline.columns)))
    first, second = (solve(pipeline, cuts, first_samples=0, given=given) for given in (0.0, MOST_GIVEN))
    exact, spent = pipeline.busy_seconds(first), pipeline.busy_seconds(second)
    taken = spent.max() / exact.max() - 1
    assert taken <= MOST_GIVEN + 1e-6
    assert exact[1] - spent[1] >= (WORTH * taken - 1e-5) * exact.max()
    assert np.count_nonzero(second > 1e-9) <= 3


@settings(max_examples=60, deadline=None)
@given(profiles(), st.integers(1, 40))
def test_long_jobs_approach_the_limit(profile: Profile, epochs: int) -> None:
    endless = plan(profile, "mix", samples=0, epochs=epochs)
    assert endless.predicted_seconds == pytest.approx(endless.limit_seconds, rel=MOST_GIVEN + 1e-6)
    assert endless.limit_seconds == pytest.approx(epochs * brute_force_pace(Pipeline.of(profile).costs), rel=1e-6)


@pytest.mark.parametrize("slowest", [1.0, 1e3, 1e6])
def test_the_optimum_is_exact_beside_hopeless_cuts(slowest: float) -> None:
    fast = [(1, 2e-6, 1e-6), (1, 1e-6, 2e-6)]
    profile = profile_of((1, slowest, slowest), *fast, (1, 0.0, slowest), bits_per_s=1e12, samples=0)
    assert plan(profile).limit_seconds == pytest.approx(1.5e-6, rel=1e-5)
    assert {cut.name: cut.share for cut in plan(profile).cuts} == pytest.approx({"cut1": 0.5, "cut2": 0.5}, rel=1e-3)


def test_three_equal_resources_share_the_work() -> None:
    # each cut keeps one resource busy for 3 ms: a third each makes 1 ms per sample
    profile = profile_of((3_000_000, 0, 0), (1, 0.003, 0), (1, 0, 0.003), samples=0)
    mix = plan(profile)
    # a second of the server or of the client would spare but two of the link
    assert {cut.name: round(cut.share, 4) for cut in mix.cuts} == {"input": 0.3333, "cut1": 0.3333, "output": 0.3333}
    assert mix.predicted_seconds == pytest.approx(0.001, rel=1e-5)
    assert mix.limit_seconds == pytest.approx(0.001, rel=1e-5)


def test_tiny_shares_are_dropped() -> None:
    # the optimum gives 1/201 of the samples to the client: not worth a second prefix
    profile = profile_of((1, 0, 0.2), (1, 0.001, 0), samples=0)
    mix = plan(profile)
    assert [cut.name for cut in mix.cuts] == ["output"]
    assert mix.limit_seconds == pytest.approx(0.2 / 201, rel=1e-6)


@pytest.mark.parametrize(("client_seconds", "cuts"), [(0.040, ["output"]), (0.010, ["input", "output"])])
def test_a_mix_must_gain_more_than_costs_are_known_to(client_seconds: float, cuts: list[str]) -> None:
    profile = profile_of((1.0, 0.0, client_seconds), (1.0, 0.001 * 0.99, 0.0), samples=0)
    mix = plan(profile)  # of rates that differ by 40 times a fortieth is gained, of 10 a tenth
    assert [cut.name for cut in mix.cuts] == cuts
    assert mix.limit_seconds is not None
    assert mix.predicted_seconds is not None
    assert mix.limit_seconds <= mix.predicted_seconds <= 1.03 * mix.limit_seconds + 1e-9


def test_prediction_by_hand() -> None:
    # server 2 ms, link 1000 bytes at 8 Mbit/s = 1 ms, client 3 ms; 2 epochs of 100 samples, the first 7 alone
    profile = profile_of(
        (50, 9, 9), (1000, 0.002, 0.003), bits_per_s=8e6, latency=0.5, samples=100, batch_size=10, epochs=2
    )
    made = plan(profile, "all")
    assert made.predicted_seconds == pytest.approx(2 * (93 * 0.003 + 7 * 0.006 + 0.5))


def test_arguments_replace_the_profile() -> None:
    profile = profile_of((1000, 0, 0.001), (100, 0.002, 0), bits_per_s=None, samples=10, batch_size=10)
    with pytest.raises(ProfileError, match="--bandwidth"):
        plan(profile)
    slow = plan(profile, "none", bandwidth=8e3)
    assert slow.predicted_seconds == pytest.approx(10.001)
    assert plan(profile, "none", bandwidth=8e3, latency=2.0).predicted_seconds == pytest.approx(12.001)
    assert plan(profile, "none", bandwidth=8e3, epochs=3).predicted_seconds == pytest.approx(30.003)
    assert plan(profile, "none", bandwidth=8e3, batch_size=1).predicted_seconds == pytest.approx(10.001)
    assert plan(profile, "none", bandwidth=8e3, samples=20).predicted_seconds == pytest.approx(20.002)


def test_a_busy_server_is_given_less() -> None:
    profile = profile_of((1, 0, 0.001), (1, 0.001, 0), samples=0)
    shares = {share: plan(profile, server_share=share).cuts for share in (1.0, 0.25)}
    assert [round(cut.share, 3) for cut in shares[1.0]] == [0.5, 0.5]
    assert [round(cut.share, 3) for cut in shares[0.25]] == [0.8, 0.2]
    with pytest.raises(ProfileError, match="share of the server"):
        plan(profile, server_share=0.0)


def test_cuts_that_do_not_fit_are_left_out() -> None:
    document = profile_of((1000, 0, 0.1), (100, 0.001, 0.001), (10, 0.002, 0), samples=100, batch_size=32).to_json()
    document["server_memory_bytes"] = 1000
    document["client_memory_bytes"] = 10_000
    document["weight_bytes"] = 500
    for row, (server, client) in zip(document["cuts"], [(0, 300), (100, 200), (600, 0)], strict=True):
        row |= {"server_bytes_per_sample": server, "client_bytes_per_sample": client}
    profile = Profile.from_json(document)
    for policy in ("mix", "single"):
        made = plan(profile, policy)
        assert [cut.name for cut in made.cuts] == ["cut1"]
        assert any("left out for memory: output" in reason and "1100 bytes" in reason for reason in made.reasons)
    assert any("warning: output does not fit" in reason for reason in plan(profile, "all").reasons)
    document["client_memory_bytes"] = 100
    document["server_memory_bytes"] = 100
    with pytest.raises(InputError, match="no cut of 'toy' fits in memory"):
        plan(Profile.from_json(document))


def test_a_cut_that_does_not_fit_is_warned_of_in_whichever_way_it_travels() -> None:
    document = profile_of((1000, 0, 0.1), (100, 0.001, 0.001), (10, 0.002, 0), bits_per_s=8e3).to_json()
    document["server_memory_bytes"] = 500
    document["cuts"][2] |= {"server_bytes_per_sample": 600, "wire": [
        {"codec": "float32", "compression": name, "out_bytes": size, "server_seconds": seconds, "client_seconds": 0}
        for name, size, seconds in [("none", 10, 0.002), ("lz4", 5, 0.003)]
    ]}  # fmt: skip
    made = plan(Profile.from_json(document), "all")
    assert [(cut.name, cut.compression) for cut in made.cuts] == [("output", "lz4")]
    assert any("warning: output does not fit" in reason for reason in made.reasons)


def test_reasons_say_what_binds_and_what_else_would_take() -> None:
    profile = profile_of(
        (110_000, 0.0001, 0.004), (400_000, 0.002, 0.001), (8_000, 0.003, 0.0001), bits_per_s=1e9, samples=50_000
    )
    text = str(plan(profile, "all"))
    assert "8 kB on the link (13.8 times less than the 110 kB stored)" in text
    assert "the storage server sets the pace at 333.3 samples/s over 1 Gbit/s" in text
    assert "the link is busy 2% of the time" in text
    assert "none 3 min 20 s" in text
    assert "3.64 times the 110 kB stored" in str(plan(profile, "cut1"))
    assert "shipped as stored (110 kB)" in str(plan(profile, "none"))
    mix = str(plan(profile, "mix"))
    assert "only output 2 min 30 s" in mix


def test_free_profiles_and_unknown_policies() -> None:
    free = profile_of((0, 0, 0), (0, 0, 0), samples=10)
    for policy in POLICIES:
        assert plan(free, policy).predicted_seconds == plan(free, policy).limit_seconds == 0 or policy.startswith(
            "paper"
        )
    assert "nothing costs any time" in str(plan(free))
    with pytest.raises(InputError, match=r"unknown policy 'best'.*paper-v1.*input, output"):
        plan(free, "best")
    with pytest.raises(InputError, match="batch size"):
        plan(free, batch_size=0)
    with pytest.raises(InputError, match="bandwidth"):
        plan(free, bandwidth=-1)


@settings(max_examples=100, deadline=None)
@given(profiles(max_cuts=40), st.sampled_from([*POLICIES]))
def test_every_policy_gives_a_plan_that_is_json(profile: Profile, policy: str) -> None:
    document = plan(profile, policy).to_json()
    assert sorted(document) == ["cuts", "limit_seconds", "policy", "predicted_seconds", "reasons"]
    assert sum(cut["share"] for cut in document["cuts"]) == pytest.approx(1)
    assert {cut["name"] for cut in document["cuts"]} <= {cut.name for cut in profile.cuts}
    assert document["reasons"]


@settings(max_examples=100, deadline=None)
@given(profiles(), st.floats(0, 1), st.floats(0, 1))
def test_kept_features_make_later_epochs_cheaper(profile: Profile, kept: float, part: float) -> None:
    head = part * min(cut.client_seconds for cut in profile.cuts)
    plain, one = plan(profile), plan(profile, epochs=1)
    made = plan(replace(profile, kept_share=kept, head_seconds=head))
    everything = plan(replace(profile, kept_share=1.0, head_seconds=head))
    assert made.limit_seconds <= made.predicted_seconds * (1 + 1e-9)
    slack = 1 + MOST_GIVEN + LEAST_GAIN + 1e-3  # what is not worth a mix in one of them may be in the other
    assert everything.predicted_seconds <= made.predicted_seconds * slack
    assert made.predicted_seconds <= plain.predicted_seconds * slack
    later = (profile.epochs - 1) * max(1, profile.samples) * head
    assert everything.predicted_seconds == pytest.approx(one.predicted_seconds + later, rel=slack - 1)


def test_that_features_are_kept_is_said() -> None:
    profile = profile_of((1000, 1, 2), (100, 2, 1), samples=100, epochs=5, kept_share=0.5)
    assert any("50% of the features are kept" in reason for reason in plan(profile).reasons)
