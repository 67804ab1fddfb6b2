"""Before each bandwidth a network's profile is brought up to date, over a link without a limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.bench.run import Bench
from benchmarks.sweep.cases import TURNS, WEIGHT
from benchmarks.sweep.experiment import Network, Settings
from benchmarks.sweep.streams import Shares
from hapi.plan import CutCost, Link, Profile

RATE = 1e8
PACES = {"input": 0.040, "a": 0.013, "b": 0.010, "c": 0.022, "output": 0.030}
CUTS = (
    CutCost("input", 100_000, 0.001, 0.040),
    CutCost("a", 100_000, 0.009, 0.012),
    CutCost("b", 90_000, 0.011, 0.010),
    CutCost("c", 50_000, 0.020, 0.005),
    CutCost("output", 4_000, 0.030, 0.001),
)


class Tiers(Network):
    """Gives every stream its pace, b's half more than when the profile was made; remembers at which rate each ran."""

    def __init__(self, settings: Settings) -> None:
        self.rate: float | None = RATE
        self.watched = list[tuple[str, float | None]]()
        bed: Any = SimpleNamespace(kind="relay", link=SimpleNamespace(shape=self._shape))
        talk: Any = None
        super().__init__(settings, bed, talk, "torchvision:alexnet", Profile("alexnet", 100_000, CUTS, Link(RATE)))

    def _shape(self, rate: float | None) -> None:
        self.rate = rate

    def watch(self, shares: Shares, part: float, give_up: float | None) -> dict[str, Any]:
        self.watched.append((shares[0][0], self.rate))
        seconds = 1.5 * PACES["b"] if shares[0][0] == "b" else PACES[shares[0][0]]
        return {"seconds_per_sample": seconds, "is_bound": False, "seconds": 2.0, "samples": 50}


def swept(*, quick: bool) -> tuple[Tiers, Bench]:
    tiers, bench = Tiers(Settings(quick=quick)), Bench("sweep")
    tiers.at(bench, "alexnet", RATE, ("single",), {})
    return tiers, bench


def test_what_could_be_the_best_and_both_ends_are_watched_anew_and_the_choice_is_made_by_that() -> None:
    tiers, bench = swept(quick=False)
    fresh = [name for name, rate in tiers.watched if rate is None]
    assert fresh == ["input", "a", "b", "output"] * TURNS
    judged = tiers.watched[len(fresh) :]
    assert {rate for _, rate in judged} == {RATE}
    assert tiers.profile.cut("b").server_seconds == pytest.approx(WEIGHT * 0.015 + (1 - WEIGHT) * 0.011)
    assert bench.rows[0].get("cuts")[0]["name"] == "a"


def test_quick_goes_by_the_profile_that_there_is() -> None:
    tiers, bench = swept(quick=True)
    assert {rate for _, rate in tiers.watched} == {RATE}
    assert bench.rows[0].get("cuts")[0]["name"] == "b"
