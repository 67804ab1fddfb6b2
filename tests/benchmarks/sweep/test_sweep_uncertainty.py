"""How sure a comparison of streams is."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.sweep.streams import CutPace, Stream
from benchmarks.sweep.uncertainty import (
    SHORT,
    USUAL_NOISE,
    Verdict,
    best_cut,
    compared,
    error_of_ratio,
    spread,
    verdict_on,
)


def pace(*seconds: float, **values: Any) -> CutPace:
    readings = tuple({"seconds_per_sample": one, "is_bound": False} for one in seconds)
    return CutPace(sum(seconds) / len(seconds), readings=readings, **values)


def cuts(**found: CutPace) -> tuple[dict[str, CutPace], dict[str, Stream]]:
    return found, {name: Stream(((name, 1.0),), 0.01) for name in found}


def test_the_noise_is_that_of_all_streams_and_the_usual_one_at_first() -> None:
    assert spread([pace(0.01)]) == pytest.approx(USUAL_NOISE)
    quiet = [pace(*[0.01] * 10) for _ in range(10)]
    assert spread(quiet) < USUAL_NOISE / 3
    assert spread([*quiet, pace(0.005, 0.015)]) > spread(quiet)
    assert spread([*quiet, pace(0.005, 0.015, is_carried=True)]) == spread(quiet)


def test_more_readings_make_a_ratio_surer() -> None:
    one, four = pace(0.010), pace(*[0.010] * 4)
    assert error_of_ratio(four, four, 0.04) == 0.0
    assert error_of_ratio(one, pace(0.011), 0.04) == pytest.approx(0.04 * 2**0.5)
    assert error_of_ratio(four, pace(*[0.011] * 4), 0.04) == pytest.approx(0.04 * 2**0.5 / 2)


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(0.0100, Verdict.NEAR), (0.0104, Verdict.OPEN), (0.0106, Verdict.OPEN), (0.0110, Verdict.FAR)],
)
def test_within_five_percent_is_said_only_where_it_is_certain(seconds: float, verdict: Verdict) -> None:
    assert compared(pace(*[seconds] * 2), pace(*[0.0100] * 2), 0.02) is verdict


def test_a_short_reading_says_little() -> None:
    short, whole = pace(0.013, is_short=True), pace(0.010)
    assert error_of_ratio(short, whole, 0.04) == pytest.approx(0.04 * (1 / SHORT + 1) ** 0.5)
    assert compared(short, whole, 0.05) is Verdict.OPEN
    assert compared(pace(0.013), whole, 0.05) is Verdict.FAR
    assert compared(pace(0.030, is_short=True), whole, 0.05) is Verdict.FAR


def test_a_choice_is_held_against_every_cut() -> None:
    found, streams = cuts(a=pace(*[0.0106] * 8), b=pace(*[0.0105] * 8), c=pace(0.0102), d=pace(0.001, is_bound=True))
    assert verdict_on("a", found, streams, 0.02) is Verdict.OPEN
    assert verdict_on("b", {**found, "c": pace(0.0120)}, streams, 0.02) is Verdict.NEAR
    assert verdict_on("a", {**found, "b": pace(*[0.0090] * 8)}, streams, 0.02) is Verdict.FAR
    assert verdict_on("d", found, streams, 0.02) is Verdict.OPEN
    assert verdict_on("d", {**found, "d": pace(0.02, is_bound=True)}, streams, 0.02) is Verdict.FAR


def test_the_least_of_noisy_means_is_told_by_readings_that_did_not_choose_it() -> None:
    clear, streams = cuts(a=pace(0.010, 0.011), b=pace(0.020, 0.021))
    best = best_cut(clear, streams)
    assert best is not None
    assert best.name == "a"
    assert best.seconds == pytest.approx(0.0105)
    noisy, streams = cuts(a=pace(0.009, 0.011), b=pace(0.0112, 0.0092))
    best = best_cut(noisy, streams)
    assert best is not None
    assert best.name == "a"
    assert best.seconds == pytest.approx((0.010 + 0.0112) / 2)


def test_nothing_is_the_best_where_everything_was_given_up_or_measured_elsewhere() -> None:
    found, streams = cuts(a=pace(1.0, is_bound=True), b=pace(0.5, is_carried=True))
    assert best_cut(found, streams) is None
