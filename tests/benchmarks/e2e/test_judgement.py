"""What is said of the rows of one situation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.bench.rows import Row
from benchmarks.e2e.judgement import cuts_text, epochs_text, judged, loss_difference
from benchmarks.e2e.plots import spread_out


def row(system: str, seconds: float, losses: Sequence[float] = (1.0,), **values: Any) -> Row:
    return Row("e2e", system, model="m", epochs=1, samples=8, bandwidth_bits_per_s=1e6).filled(
        seconds=seconds, losses=list(losses), **values
    )


def test_the_limit_is_that_of_the_best_plan_for_every_system_of_the_situation() -> None:
    rows = judged(
        [
            row("plain", 8.0),
            row("single", 4.0, plan_limit_seconds=3.0),
            row("mix", 2.5, plan_limit_seconds=2.0),
            row("plain", 1.0).filled(bandwidth_bits_per_s=None),
        ]
    )
    assert [entry.limit_seconds for entry in rows] == [2.0, 2.0, 2.0, None]
    assert [entry.get("measured_over_limit") for entry in rows] == [4.0, 2.0, 1.25, None]


def test_losses_are_held_against_those_of_plain_at_any_bandwidth() -> None:
    rows = judged(
        [
            row("plain", 1.0, [2.0]).filled(bandwidth_bits_per_s=None),
            row("mix", 1.0, [2.0 + 1e-7]),
            row("all", 1.0, [2.1]),
            row("none", 1.0).filled(failed=True, note="ended"),
        ]
    )
    assert rows[1].note == ""
    assert rows[1].get("loss_difference") == pytest.approx(5e-8)
    assert rows[2].note == "losses differ from plain's by up to 0.05 (relative)"
    assert rows[3].note == "ended"


@pytest.mark.parametrize(
    ("mine", "plain"), [(float("nan"), 1.0), (1.0, float("nan")), (0.1, 0.0), (None, 1.0), (None, None)]
)
def test_a_loss_that_is_no_number_does_not_agree(mine: float, plain: float) -> None:
    rows = judged([row("plain", 1.0, [1.0, plain]), row("mix", 1.0, [1.0, mine])])
    assert rows[1].note == "losses differ from plain's by up to inf (relative)"
    assert loss_difference([1.0, 0.0], [1.0, 0.0]) == 0.0


def test_without_plain_it_is_said_that_nothing_was_compared() -> None:
    (only,) = judged([row("mix", 1.0)])
    assert only.note == "no run of plain to hold the losses against"


def test_how_epochs_and_cuts_are_written() -> None:
    assert epochs_text([4.104, 0.5]) == "4.10, 0.50"
    assert epochs_text([4.0, *[0.5] * 9]) == "4.00, then 9 of 0.50"
    assert cuts_text([{"name": "layer3", "share": 0.62}, {"name": "input", "share": 0.38}]) == "62% layer3, 38% input"
    assert cuts_text([{"name": "output", "share": 1.0}]) == "output"


@pytest.mark.parametrize("models", [1, 2, 5, 6])
def test_panels_are_of_different_links_of_different_networks(models: int) -> None:
    situations = [(f"net{model}", float(rate)) for model in range(models) for rate in (1, 2, 3)]
    shown = spread_out(situations)
    assert shown == sorted(shown)
    assert len(shown) == min(6, len(situations)) == len(set(shown))
    assert {rate for _, rate in shown} == {1.0, 2.0, 3.0}
    assert {model for model, _ in shown} == {model for model, _ in situations}
