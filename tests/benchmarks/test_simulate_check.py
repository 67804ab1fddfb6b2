"""The simulation beside the testbed: what a case is judged by, and the fleet that measures one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.localserver import local_server
from benchmarks.simulate import check, fleet
from benchmarks.simulate.check import ALONE, DEPTHS, TENANTS, Case, judged, mean, simulated
from benchmarks.simulate.fleet import Wanted
from hapi import cli
from hapi.data import open_store
from hapi.data.transfer import put_pictures
from hapi.plan import CutCost, Link, Profile

PROFILE = Profile(
    "toy",
    100e3,
    (CutCost("input", 100e3, 0.0002, 0.03), CutCost("middle", 50e3, 0.01, 0.002), CutCost("output", 5e3, 0.02, 0.0)),
    Link(50e6, 0.001),
)


def case(cut: str = "output", tenants: int = 1, seconds: float = 1.0) -> Case:
    return Case(50e6, cut, tenants, seconds, 1000, 16)


def test_a_case_takes_what_its_bottleneck_takes() -> None:
    assert simulated(case(), PROFILE, 100) == pytest.approx(100 * 0.02, rel=0.05)  # the server
    for tenants in TENANTS:  # the link, which all tenants of the host share
        floor = tenants * 100 * 8 * 50e3 / 50e6
        slow = replace(PROFILE, cuts=(PROFILE.cuts[0], replace(PROFILE.cuts[1], server_seconds=0.001), PROFILE.cuts[2]))
        found = simulated(case("middle", tenants), slow, 100)
        assert floor <= found <= 1.2 * floor  # connections share it: the last ones end together, and the client after


def test_within_a_tenth_a_case_holds_and_beyond_it_fails_with_a_note() -> None:
    expected = simulated(case(), PROFILE, 100)
    assert "failed" not in judged(case(seconds=expected / 1.09), PROFILE, 100)
    wrong = judged(case(seconds=expected / 1.2), PROFILE, 100)
    assert wrong["failed"]
    assert "1.20 times" in wrong["note"]
    assert judged(case(seconds=expected / 0.8), PROFILE, 100)["failed"]


def test_the_mean_of_two_profiles_has_mean_costs_and_a_mean_link() -> None:
    faster = replace(
        PROFILE, cuts=tuple(replace(cut, server_seconds=0.0) for cut in PROFILE.cuts), link=Link(150e6, 0.003)
    )
    found = mean([PROFILE, faster])
    assert found.cut("output").server_seconds == pytest.approx(0.01)
    assert found.link == Link(100e6, 0.002)


def test_the_check_takes_the_photographs_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run_check(bench: Bench, model: str, rates: object, **how: Any) -> None:
        asked.update(how)
        bench.add(Row("simulate", "testbed", model))

    monkeypatch.setattr(check, "run_check", run_check)
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "simulate", "--check", "--quick", "--data", "x", "--seed", "7"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (asked["data"], asked["seed"], asked["samples"]) == ("x", 7, check.QUICK_SAMPLES)


def test_a_fleet_measures_its_cases(tmp_path: Path) -> None:
    put_pictures(open_store(tmp_path), 8, classes=2, seed=0, workers=1)
    with local_server(tmp_path, environment=ALONE) as on:
        wanted = Wanted(on.url, (None, None), tmp_path.as_uri(), "squeezenet1_1", 4, ((1.0, 2),), 1)
        tenants = fleet.Fleet(wanted)
        (only,) = fleet.measured_cases(tenants, wanted, fleet.warmed(tenants, wanted))
    assert only["tenants"] == 2
    assert only["seconds"][0] > 0
    assert only["bytes"] > 8 * 512 * 4
    assert only["batch"] >= 1


def test_what_a_tenant_raises_is_raised() -> None:
    class Broken:
        def __iter__(self) -> object:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fleet.together([Broken()])  # type: ignore[list-item]


def test_there_are_two_cuts_and_one_two_and_four_tenants() -> None:
    assert (len(DEPTHS), TENANTS) == (2, (1, 2, 4))
