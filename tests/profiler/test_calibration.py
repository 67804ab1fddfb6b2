"""Streams that ran over some cuts, and the profile that knows of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.errors import InputError
from hapi.plan import Link, Profile
from profiler.calibration import TOLERANCE, about_streams, calibrated, contenders, watched
from profiler.planner import plan
from tests.profiler.example_profiles import COST, profile_of, profiles

FAST = Link(1e12)


def example() -> Profile:
    """At cut1 and cut2 the server is the busier one."""
    return profile_of((1000, 0.001, 0.010), (4000, 0.004, 0.004), (2000, 0.005, 0.003), (100, 0.009, 0.001))


def test_a_cut_that_another_beats_in_bytes_and_time_is_no_contender() -> None:
    rows = (100_000, 0.001, 0.010), (4000, 0.004, 0.004), (5000, 0.009, 0.003), (2000, 0.004, 0.002), (10, 0.009, 0.001)
    assert contenders(profile_of(*rows)) == ("input", "cut1", "cut3", "output")


def test_what_the_server_has_no_memory_for_is_no_contender() -> None:
    assert contenders(profile_of(*[(10, 0.1, 0.1)] * 4, server_fits_to="cut1")) == ("input", "cut1")


@given(profiles(), st.floats(1e5, 1e12))
def test_the_best_cut_over_any_link_is_a_contender_whatever_the_tolerance(profile: Profile, rate: float) -> None:
    seconds = {cut.name: max(cut.server_seconds, cut.client_seconds, 8 * cut.out_bytes / rate) for cut in profile.cuts}
    best = min(seconds.values())
    assert min(seconds[name] for name in contenders(profile)) == pytest.approx(best)


def test_the_busier_tier_gets_the_seconds_of_the_stream() -> None:
    found = calibrated(example(), {"input": 0.012, "cut1": 0.006}, FAST)
    assert found.cut("input").client_seconds == pytest.approx(0.012)
    assert found.cut("input").server_seconds == 0.001
    assert found.cut("cut1").server_seconds == pytest.approx(0.006)
    assert found.cut("cut1").client_seconds == 0.004
    assert found.details["stream_seconds"] == {"input": 0.012, "cut1": 0.006}


def test_a_weight_goes_a_part_of_the_way_from_what_the_profile_has() -> None:
    found = calibrated(example(), {"cut1": 0.008}, FAST, weight=0.25)
    assert found.cut("cut1").server_seconds == pytest.approx(0.75 * 0.004 + 0.25 * 0.008)
    assert found.details["stream_seconds"] == {"cut1": 0.008}


def test_a_cut_between_two_gets_a_factor_between_theirs_and_one_beyond_the_last_one_s() -> None:
    found = calibrated(example(), {"input": 0.010, "cut2": 0.010}, FAST)
    assert found.cut("cut1").server_seconds == pytest.approx(0.004 * 1.5)
    assert found.cut("output").server_seconds == pytest.approx(0.009 * 2)


def test_a_stream_that_the_link_held_up_tells_nothing_of_the_tiers() -> None:
    slow = Link(8 * 4000 / 0.006)
    found = calibrated(example(), {"cut1": 0.006, "output": 0.018}, slow)
    assert found.details["stream_seconds"] == {"output": 0.018}
    assert calibrated(example(), {"cut1": 0.006}, slow) == example()
    assert about_streams(found).startswith("Seconds are those of streams over output;")
    assert about_streams(example()).startswith("No stream told anything")


def test_streams_are_watched_in_turns_and_one_that_was_disturbed_does_not_count() -> None:
    readings = iter([0.010, 0.020, 0.030, None, 0.012, 0.021])
    asked = []

    def pace(name: str) -> float | None:
        asked.append(name)
        return next(readings)

    assert watched(("a", "b"), pace, turns=3) == {"a": 0.012, "b": pytest.approx(0.0205)}
    assert asked == ["a", "b"] * 3


def test_streams_that_take_long_have_fewer_turns() -> None:
    asked: list[str] = []

    def pace(name: str) -> float | None:
        asked.append(name)
        return 0.5

    assert watched(("a", "b"), pace, turns=3, clock=lambda: 150.0 * len(asked)) == {"a": 0.5, "b": 0.5}
    assert asked == ["a", "b"]


def test_a_pace_of_no_cut_is_refused() -> None:
    with pytest.raises(InputError, match="no such cut"):
        calibrated(example(), {"cut7": 1.0}, FAST)


@given(profiles(), st.data())
def test_single_is_the_best_of_the_streams_where_all_were_watched(profile: Profile, data: st.DataObject) -> None:
    paces = {cut.name: data.draw(COST) for cut in profile.cuts}
    for cut in calibrated(profile, paces, Link(1e18)).cuts:
        assert max(cut.server_seconds, cut.client_seconds) == pytest.approx(paces[cut.name])


def test_a_plan_follows_what_the_streams_say() -> None:
    assert [share.name for share in plan(example(), "single", bandwidth=1e12).cuts] == ["cut1"]
    told = calibrated(example(), {"cut1": 0.004 * TOLERANCE, "cut2": 0.005}, FAST)
    assert [share.name for share in plan(told, "single", bandwidth=1e12).cuts] == ["cut2"]
