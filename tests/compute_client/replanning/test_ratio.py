"""Rates are smooth where measurements scatter, and follow a step after two of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_client.replanning.pace import Pace
from compute_client.replanning.ratio import FAR, Ratio


def of(*values: float) -> Ratio:
    ratio = Ratio()
    for value in values:
        ratio.add(value, 1.0)
    return ratio


@given(st.lists(st.floats(0.85, 1.15), min_size=1, max_size=50))
def test_it_stays_within_what_was_seen(values: list[float]) -> None:
    assert min(values) <= of(*values).value * (1 + 1e-9)
    assert of(*values).value <= max(values) * (1 + 1e-9)


@pytest.mark.parametrize("step", [0.1, 0.5, 2.0, 10.0])
def test_a_step_is_followed_after_two(step: float) -> None:
    assert of(*[1.0] * 20, step).value == 1.0
    assert of(*[1.0] * 20, step, step).value == pytest.approx(step)


def test_a_single_accident_is_passed_over() -> None:
    assert of(*[1.0] * 5, 60.0, 1.0, 1.0).value == 1.0
    assert of(*[1.0] * 5, 60.0, 0.01, 1.0).value == 1.0  # off to either side is no step


def test_small_changes_are_averaged() -> None:
    value = of(*[1.0] * 20, *[1.2] * 3).value
    assert 1.05 < value < 1.15
    assert of(*[1.0] * 20, *[1.2] * 20).value == pytest.approx(1.2, rel=0.01)


def test_larger_observations_weigh_more() -> None:
    ratio = Ratio()
    ratio.add(10.0, 10.0)
    ratio.add(FAR * 0.9, 1.0)
    assert ratio.value < 1.05
    ratio.add(5.0, 0.0)
    assert ratio.count == 2
    ratio.forget()
    assert (ratio.value, ratio.count) == (0.0, 0)


def test_a_pace_puts_small_pieces_together_and_waits_for_a_second_look() -> None:
    pace = Pace(least_samples=8)
    for _ in range(5):
        pace.add(4, 0.8, 0.4)
    assert pace.scale == 1.0
    pace.add(4, 0.8, 0.4)
    assert pace.scale == pytest.approx(2.0)
    pace.forget()
    assert pace.scale == 1.0
