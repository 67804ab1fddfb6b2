"""Which streams are watched at a bandwidth, and what is known of the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.sweep.cases import FIRST, MOST_ROUNDS, MOST_SECONDS, learned, measure_streams
from benchmarks.sweep.streams import CutPace, Shares, Stream
from benchmarks.sweep.uncertainty import best_cut

TRUE = {"input": 0.040, "a": 0.012, "b": 0.010, "output": 0.031, "mixed:mix": 0.0095}
PREDICTED = {"input": 0.044, "a": 0.011, "b": 0.0105, "output": 0.028}


class Tiers:
    """Gives the true paces, and remembers what was asked."""

    def __init__(self, **paces: float) -> None:
        self._paces, self.asked = {**TRUE, **paces}, list[tuple[str, float | None]]()
        self.parts = list[float]()

    def watch(self, shares: Shares, part: float, give_up: float | None) -> dict[str, Any]:
        name = shares[0][0] if len(shares) == 1 else "mixed:mix"
        self.parts.append(part)
        self.asked.append((name, give_up))
        pace = self._paces[name]
        is_bound = give_up is not None and pace > give_up
        bound = give_up if is_bound and give_up is not None else pace
        return {"seconds_per_sample": bound, "is_bound": is_bound, "seconds": 3.0, "samples": 40}

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


def streams(*wanted: str, promised: str | None = None, **floors: float) -> dict[str, Stream]:
    return {
        name: Stream(((name, 1.0),), predicted, floors.get(name, 0.001), name in wanted, name == promised)
        for name, predicted in PREDICTED.items()
    }


MIX = Stream((("input", 0.2), ("b", 0.8)), 0.009, 0.001, True, True)


def test_the_fastest_by_the_profile_come_first_and_choices_are_given_up_later() -> None:
    tiers = Tiers()
    found = measure_streams(streams("output"), {}, tiers.watch)
    assert tiers.asked == [
        ("b", None),
        ("a", pytest.approx(0.013)),
        ("output", pytest.approx(0.020)),
        ("input", pytest.approx(0.013)),
    ]
    assert (found["input"].is_bound, found["output"].is_bound, found["a"].is_bound) == (True, True, False)
    assert found["input"].seconds == pytest.approx(0.013)
    assert "given up after 3.0 s" in found["input"].why


def test_cuts_that_the_link_or_a_faster_link_rules_out_are_not_watched() -> None:
    tiers = Tiers()
    faster = {name: CutPace(pace) for name, pace in TRUE.items()}
    found = measure_streams(streams("b", input=0.050), faster, tiers.watch)
    assert tiers.names == ["b"]  # the best must be seen here
    assert (found["input"].seconds, found["output"].seconds) == (0.050, 0.031)
    assert found["input"].why == "the link alone needs that for its bytes"
    assert "faster link" in found["output"].why
    assert (found["a"].is_carried, found["b"].is_carried) == (True, False)


def test_what_was_carried_is_watched_where_it_would_be_the_best_or_leaves_a_choice_open() -> None:
    faster = {name: CutPace(pace) for name, pace in {**TRUE, "a": 0.0105}.items()}
    tiers = Tiers(a=0.0105)
    found = measure_streams(streams(), faster, tiers.watch)
    assert tiers.names == ["b"]
    assert [name for name, pace in found.items() if pace.is_carried] == ["a", "output", "input"]
    tiers = Tiers(a=0.0105, b=0.0110)
    found = measure_streams(streams("b", promised="b"), faster, tiers.watch)
    assert set(tiers.names) == {"a", "b"}
    assert [name for name, pace in found.items() if pace.is_carried] == ["output", "input"]


def test_a_choice_is_read_again_until_it_is_certain_whether_it_is_near_the_best() -> None:
    tiers = Tiers(a=0.0103)
    found = measure_streams(streams("a", promised="a"), {}, tiers.watch)
    assert 1 < len(found["a"].readings) <= MOST_ROUNDS  # the first one was short
    assert tiers.parts == [FIRST] * 4 + [1.0] * (len(tiers.parts) - 4)
    assert len(found["a"].readings) == len(found["b"].readings)
    assert tiers.names[4:6] == ["b", "a"]  # in turns, with the cut that leaves it open
    assert found["a"].seconds == pytest.approx(0.0103)


def test_a_choice_that_is_clearly_the_best_is_read_once_and_one_that_is_clearly_not_twice() -> None:
    for promised, pace, times in (("b", 0.007, 1), ("output", 0.019, 2)):
        tiers = Tiers(**{promised: pace})
        measure_streams(streams(promised, promised=promised), {}, tiers.watch)
        assert Counter(tiers.names)[promised] == times


def test_a_promised_mix_is_held_against_cuts_and_is_never_the_best_of_them() -> None:
    every = {**streams(), "mixed:mix": MIX}
    tiers = Tiers(**{"mixed:mix": 0.0099})
    found = measure_streams(every, {}, tiers.watch)
    assert Counter(tiers.names)["mixed:mix"] > 1
    best = best_cut(found, every)
    assert best is not None
    assert best.name == "b"


def test_a_first_reading_that_is_much_slower_than_predicted_is_made_again() -> None:
    class Disturbed(Tiers):
        def watch(self, shares: Shares, part: float, give_up: float | None) -> dict[str, Any]:
            reading = super().watch(shares, part, give_up)
            return reading | ({"seconds_per_sample": 0.017} if self.names.count("a") == 1 == len(shares) else {})

    tiers = Disturbed()
    found = measure_streams({"a": streams()["a"]}, {}, tiers.watch)
    assert tiers.names == ["a", "a"]
    assert found["a"].seconds == 0.012


def test_rounds_are_bounded() -> None:
    tiers = Tiers(a=0.0105)
    measure_streams(streams("a", promised="a"), {}, tiers.watch, rounds=2)
    assert Counter(tiers.names)["a"] == 3
    late, moments = Tiers(a=0.0105), iter([0.0, 1.0, MOST_SECONDS + 1.0])
    measure_streams(streams("a", promised="a"), {}, late.watch, clock=lambda: next(moments))
    assert Counter(late.names)["a"] == 2


def test_what_was_read_in_full_of_cuts_that_the_link_did_not_hold_up_is_learned() -> None:
    whole = {"seconds_per_sample": 0.012, "is_bound": False}
    found = {
        "input": CutPace(0.04, is_bound=True, readings=(whole,)),
        "a": CutPace(0.012, readings=(whole, whole)),
        "b": CutPace(0.010, readings=(whole,)),
        "output": CutPace(0.031, is_short=True, readings=(whole,)),
        "mixed:mix": CutPace(0.009, readings=(whole,)),
    }
    assert learned(found, {**streams(b=0.0099), "mixed:mix": MIX}) == {"a": 0.012}
    assert set(learned(found, {**streams(), "mixed:mix": MIX})) == {"a", "b"}
    carried = {**found, "a": CutPace(0.012, is_carried=True, readings=(whole,))}
    assert set(learned(carried, {**streams(), "mixed:mix": MIX})) == {"b"}
