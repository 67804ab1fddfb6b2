"""What a plan says of a loader's own work."""

from __future__ import annotations

import pytest

from compute_client.planning import Workload, computed_seconds
from hapi.plan import Change, Plan, Share

CUTS = (Share("output", 1.0),)


@pytest.mark.parametrize(
    ("predicted", "epochs", "kept", "expected"),
    [(50.0, 1, 0.0, 0.5), (150.0, 3, 0.0, 0.5), (50.0, 3, 1.0, 0.5), (100.0, 3, 0.5, 0.5), (None, 3, 0.5, None)],
)
def test_kept_samples_take_no_time(predicted: float | None, epochs: int, kept: float, expected: float | None) -> None:
    assert computed_seconds(Plan("mix", CUTS, predicted, None), Workload(100, 32, epochs), kept) == expected


def test_a_plan_that_has_changed_predicts_for_all_samples() -> None:
    plan = Plan("mix", CUTS, 150.0, None, history=(Change(0.0, CUTS, CUTS, "the link gives more"),))
    assert computed_seconds(plan, Workload(100, 32, 3), 1.0) == 0.5
