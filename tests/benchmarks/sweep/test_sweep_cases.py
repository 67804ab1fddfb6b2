"""Which cuts are watched at a bandwidth, and what is known of the others."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.sweep.cases import CutPace, Shares, best_of, measure_cuts

TRUE = {"input": 0.040, "a": 0.012, "b": 0.010, "output": 0.030}
PREDICTED = {"input": 0.044, "a": 0.011, "b": 0.0105, "output": 0.028}


class Tiers:
    """Gives the true paces, and remembers what was asked."""

    def __init__(self, **paces: float) -> None:
        self._paces, self.asked = {**TRUE, **paces}, list[tuple[str, float | None]]()

    def watch(self, shares: Shares, seconds: float, give_up: float | None) -> dict[str, Any]:
        ((name, _),) = shares
        self.asked.append((name, give_up))
        pace = self._paces[name]
        is_bound = give_up is not None and pace > give_up
        bound = give_up * 2 / 3 if is_bound and give_up is not None else pace
        return {"seconds_per_sample": bound, "is_bound": is_bound, "seconds": 3.0, "samples": 40}


def floors(**values: float) -> dict[str, float]:
    return {**dict.fromkeys(TRUE, 0.001), **values}


def test_chosen_cuts_come_first_and_are_never_given_up() -> None:
    tiers = Tiers()
    found = measure_cuts(PREDICTED, {"input"}, floors(), {}, tiers.watch, 1.0)
    assert tiers.asked[0] == ("input", None)
    assert [name for name, _ in tiers.asked[1:4]] == ["b", "a", "output"]
    assert not found["input"].is_bound
    assert found["input"].seconds == 0.040
    assert best_of(found) == "b"


def test_a_cut_that_is_hopeless_is_at_least_as_slow_as_what_was_seen_of_it() -> None:
    tiers = Tiers()
    found = measure_cuts(PREDICTED, set(), floors(), {}, tiers.watch, 1.0)
    assert found["output"].is_bound
    assert found["output"].seconds == pytest.approx(0.010)  # two thirds of 1.5 times the best: no better than the best
    assert "given up after 3.0 s" in found["output"].why


def test_cuts_that_the_link_or_a_faster_link_rules_out_are_not_watched() -> None:
    tiers = Tiers()
    faster = {name: CutPace(pace) for name, pace in TRUE.items()}
    found = measure_cuts(PREDICTED, set(), floors(input=0.050), faster, tiers.watch, 1.0)
    assert {name for name, _ in tiers.asked} == {"b"}  # the best must be seen here
    assert (found["input"].seconds, found["output"].seconds) == (0.050, 0.030)
    assert found["input"].why == "the link alone needs that for its bytes"
    assert "faster link" in found["output"].why
    assert found["a"].is_carried
    assert not found["b"].is_carried
    assert best_of(found) == "b"


def test_where_the_link_may_hold_a_cut_up_it_is_watched_again() -> None:
    tiers = Tiers(b=0.013)
    faster = {name: CutPace(pace) for name, pace in TRUE.items()}
    found = measure_cuts(PREDICTED, set(), floors(b=0.005), faster, tiers.watch, 1.0)
    assert {name for name, _ in tiers.asked} == {"a", "b"}
    assert (best_of(found), found["a"].is_carried) == ("a", False)
    assert measure_cuts(PREDICTED, {"output"}, floors(), faster, tiers.watch, 1.0)["output"].is_carried is False


def test_those_near_the_best_are_watched_twice() -> None:
    tiers = Tiers(a=0.0105)
    found = measure_cuts(PREDICTED, set(), floors(), {}, tiers.watch, 1.0)
    assert [len(found[name].readings) for name in ("a", "b")] == [2, 2]
    assert found["a"].seconds == pytest.approx(0.0105)


def test_nothing_is_the_best_where_everything_was_given_up() -> None:
    assert best_of({"a": CutPace(1.0, is_bound=True)}) is None
