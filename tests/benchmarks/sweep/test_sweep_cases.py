"""Which streams are watched at a bandwidth, and what is known of the others."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.sweep.cases import ROUNDS, CutPace, Shares, Stream, best_of, measure_streams

TRUE = {"input": 0.040, "a": 0.012, "b": 0.010, "output": 0.031, "mixed:mix": 0.0095}
PREDICTED = {"input": 0.044, "a": 0.011, "b": 0.0105, "output": 0.028}


class Tiers:
    """Gives the true paces, and remembers what was asked."""

    def __init__(self, **paces: float) -> None:
        self._paces, self.asked = {**TRUE, **paces}, list[tuple[str, float, float | None]]()

    def watch(self, shares: Shares, seconds: float, give_up: float | None) -> dict[str, Any]:
        name = shares[0][0] if len(shares) == 1 else "mixed:mix"
        self.asked.append((name, seconds, give_up))
        pace = self._paces[name]
        is_bound = give_up is not None and pace > give_up
        bound = give_up if is_bound and give_up is not None else pace
        return {"seconds_per_sample": bound, "is_bound": is_bound, "seconds": 3.0, "samples": 40}

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]


def streams(*wanted: str, **floors: float) -> dict[str, Stream]:
    return {
        name: Stream(((name, 1.0),), predicted, floors.get(name, 0.001), name in wanted)
        for name, predicted in PREDICTED.items()
    }


MIX = Stream((("input", 0.2), ("b", 0.8)), 0.009, 0.001, True)


def test_the_fastest_by_the_profile_come_first_and_choices_are_given_up_later() -> None:
    tiers = Tiers()
    wanted = streams("output")
    found = measure_streams(wanted, {}, tiers.watch, 1.0)
    assert tiers.asked[:4] == [
        ("b", 1.0, None),
        ("a", 1.0, pytest.approx(0.015)),
        ("output", 1.0, pytest.approx(0.030)),
        ("input", 1.0, pytest.approx(0.015)),
    ]
    assert (found["input"].is_bound, found["output"].is_bound, found["a"].is_bound) == (True, True, False)
    assert found["input"].seconds == pytest.approx(0.015)
    assert "given up after 3.0 s" in found["input"].why
    assert best_of(found, wanted) == "b"


def test_cuts_that_the_link_or_a_faster_link_rules_out_are_not_watched() -> None:
    tiers = Tiers()
    faster = {name: CutPace(pace) for name, pace in TRUE.items()}
    every = streams(input=0.050)
    found = measure_streams(every, faster, tiers.watch, 1.0)
    assert set(tiers.names) == {"b"}  # the best must be seen here
    assert (found["input"].seconds, found["output"].seconds) == (0.050, 0.031)
    assert found["input"].why == "the link alone needs that for its bytes"
    assert "faster link" in found["output"].why
    assert (found["a"].is_carried, found["b"].is_carried) == (True, False)
    assert best_of(found, every) == "b"


def test_where_the_link_may_hold_a_cut_up_it_is_watched_again() -> None:
    tiers = Tiers(b=0.014)
    faster = {name: CutPace(pace) for name, pace in TRUE.items()}
    every = streams(b=0.005)
    found = measure_streams(every, faster, tiers.watch, 1.0)
    assert set(tiers.names) == {"a", "b"}
    assert (best_of(found, every), found["a"].is_carried) == ("a", False)
    assert measure_streams(streams("output"), faster, tiers.watch, 1.0)["output"].is_carried is False


def test_those_near_the_best_are_watched_again_in_turns_and_for_longer() -> None:
    tiers = Tiers(a=0.0105)
    every = {**streams(), "mixed:mix": MIX}
    found = measure_streams(every, {}, tiers.watch, 1.0)
    assert [len(found[name].readings) for name in ("a", "b", "mixed:mix")] == [1 + ROUNDS] * 3
    assert tiers.names[-3 * ROUNDS :] == ["mixed:mix", "b", "a"] * ROUNDS
    assert {(name, seconds) for name, seconds, _ in tiers.asked[-3:]} == {("mixed:mix", 6.0), ("b", 3.0), ("a", 3.0)}
    assert found["a"].seconds == pytest.approx(0.0105)


def test_a_mix_is_never_the_best_cut() -> None:
    every = {**streams(), "mixed:mix": MIX}
    found = measure_streams(every, {}, Tiers().watch, 1.0)
    assert found["mixed:mix"].seconds < found["b"].seconds
    assert best_of(found, every) == "b"


def test_nothing_is_the_best_where_everything_was_given_up() -> None:
    assert best_of({"a": CutPace(1.0, is_bound=True)}, streams()) is None
