"""The knee, on throughput curves that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage_server.extraction.sizing import seconds_by_size
from storage_server.scheduling import remembered
from storage_server.scheduling.knee import GAIN, LONG_SECONDS, NEARLY, PROBE_EVERY, ROUGHLY, START, Curve, power_of_two
from storage_server.scheduling.remembered import SAVE_SECONDS, Remembered

Seconds = Callable[[int], float]


def learn(curve: Curve, seconds: Seconds, batches: int, cap: int = 256) -> int:
    """Runs so many whole batches of the size that is wanted, and answers the last size."""
    size = 0
    for _ in range(batches):
        size, _, _ = curve.target(cap)
        assert 1 <= size <= cap
        assert size == power_of_two(size)
        curve.record(size, seconds(size))
    return size


def settled(curve: Curve, cap: int = 256) -> int:
    """The size that is wanted while nothing is tried."""
    while curve.target(cap)[1]:
        learn(curve, lambda size: size * curve.best.get(size, 1e9), 1, cap)
    return curve.target(cap)[0]


@given(st.floats(1e-6, 1e-4), st.floats(0.0, 1.0), st.integers(0, 8))
def test_it_finds_the_smallest_size_that_is_nearly_as_fast_as_the_best(unit: float, overhead: float, step: int) -> None:
    """Seconds are affine in the batch up to a knee at 2**step and proportional after it: a device that is full."""

    def seconds(size: int) -> float:
        return unit * (overhead * min(size, 2**step) / size + 1) * size if size >= 2**step else unit * (1 + size)

    curve = Curve()
    learn(curve, seconds, 4 * PROBE_EVERY)
    chosen = settled(curve)
    best = min(seconds(size) / size for size in curve.best)
    assert seconds(chosen) / chosen <= NEARLY * best * (1 + 1e-9)
    assert all(seconds(size) / size > NEARLY * best for size in curve.best if START <= size < chosen)


def test_exploring_goes_on_while_it_gains_and_no_further() -> None:
    curve = Curve()
    learn(curve, lambda size: 0.001 + 1e-5 * size, 100)
    assert max(curve.best) == 256
    flat = Curve()
    learn(flat, lambda size: 1e-4 * size, 30)
    assert max(flat.best) == 16, "two doublings beyond the start gained nothing"
    assert settled(flat) == 4


def test_a_plateau_of_one_doubling_does_not_stop_it() -> None:
    speeds = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.5, 32: 1.5, 64: 1.5}
    curve = Curve()
    learn(curve, lambda size: 0.001 * size / speeds[size], 60, cap=64)
    assert settled(curve, 64) == 16


def test_interference_now_and_then_does_not_mislead() -> None:
    curve, turn = Curve(), 0

    def seconds(size: int) -> float:
        nonlocal turn
        turn += 1
        return 1e-4 * size * (3.0 if turn % 2 else 1.0)

    learn(curve, seconds, 60)
    assert settled(curve) <= 4, "all sizes are as fast"


@given(
    st.floats(0.0, 1.0),
    st.lists(st.floats(1.0, 20.0), min_size=1, max_size=200),
    st.integers(2, 8),
)
@example(overhead=0.03, busy=[1.0] * 6 + [3.0] * 3, step=6)  # two doublings up looked slow: beyond both neighbours
def test_a_busy_machine_does_not_pin_a_slower_size(overhead: float, busy: list[float], step: int) -> None:
    """Whatever a busy machine made of the first batches, the size is soon as good as if it had been idle."""
    cap = 2**step

    def seconds(size: int) -> float:
        return 0.001 * (overhead + 0.1 * size)

    curve, idle, noise = Curve(), Curve(), iter(busy)
    learn(curve, lambda size: seconds(size) * next(noise, 1.0), len(busy), cap)
    learn(curve, seconds, 12 * PROBE_EVERY, cap)
    learn(idle, seconds, 12 * PROBE_EVERY, cap)
    best = min(seconds(size) / size for size in idle.best)
    chosen = settled(curve, cap)
    assert seconds(chosen) / chosen <= GAIN * best * (1 + 1e-9)


@pytest.mark.parametrize("overhead", [0.05, 0.2, 1.0])
def test_noise_that_does_not_end_costs_less_than_five_per_cent(overhead: float) -> None:
    """Every second batch is slowed, up to threefold; trials and wrong sizes together are what it costs."""

    def seconds(size: int) -> float:
        return 0.001 * (overhead + 0.1 * size)

    best = min(seconds(size) / size for size in (1, 2, 4, 8, 16, 32))
    for seed in range(20):
        curve, random, spent, done = Curve(), Random(seed), 0.0, 0
        for _ in range(3000):
            size = curve.target(32)[0]
            curve.record(size, seconds(size) * (random.uniform(1.0, 3.0) if random.random() < 0.5 else 1.0))
            spent, done = spent + seconds(size), done + size
        assert spent / done <= GAIN * best


@pytest.mark.parametrize("each", [0.08, 0.3, 2.0])
def test_nothing_larger_is_tried_than_a_batch_that_takes_long(each: float) -> None:
    curve, tried = Curve(), set[int]()
    for _ in range(4 * PROBE_EVERY):
        size, _, _ = curve.target(256)
        tried.add(size)
        curve.record(size, each * size + 0.001)
    assert max(tried) == START
    assert settled(curve) * each <= max(LONG_SECONDS, each)


@pytest.mark.parametrize(("slower", "size"), [(0.99 * ROUGHLY, 4), (1.01 * ROUGHLY, 8)])
def test_half_of_a_long_batch_is_taken_if_it_is_hardly_slower(slower: float, size: int) -> None:
    for unit, expected in ((0.08, size), (0.001, 8)):
        curve = Curve({4: slower * unit, 8: unit, 16: unit, 32: unit})
        assert curve.target(256) == (expected, False, False)


def test_a_cap_is_kept_and_said() -> None:
    curve = Curve()
    learn(curve, lambda size: 0.001 + 1e-6 * size, 100)
    size, is_trial, is_capped = curve.target(23)
    assert (size, is_capped) == (16, True)
    assert not is_trial
    assert curve.target(1)[0] == 1


def test_a_partial_batch_says_nothing_of_whole_ones() -> None:
    curve = Curve()
    for _ in range(10):
        curve.record(11, 100.0)
    assert curve.best == {}
    for _ in range(10):
        curve.record(15, 15.0)
    assert curve.best == {16: 1.0}


def test_smaller_sizes_than_the_start_are_tried_only_where_that_takes_long() -> None:
    for each, smallest in ((1.0, 1), (0.5 * LONG_SECONDS, 2), (0.01, 4)):
        curve = Curve()
        learn(curve, lambda size, each=each: each * size, 8 * PROBE_EVERY)  # type: ignore[misc]
        assert settled(curve) == min(curve.best) == smallest


def test_a_trial_for_which_there_are_not_enough_samples_is_given_up() -> None:
    curve = Curve()
    learn(curve, lambda size: 1e-4 * size, 30)
    trials = 0
    for _ in range(3 * PROBE_EVERY):
        trials += curve.target(256)[1]
        curve.record(4, 4e-4)  # there never are more, nor fewer
    assert trials < 3 * PROBE_EVERY / 4


def test_what_was_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    curve = Curve()
    learn(curve, lambda size: 0.001 + 1e-4 * size, 100)
    kept = Remembered(tmp_path / "learned.json")
    kept.put("a", {str(size): value for size, value in curve.best.items()})
    kept.save()
    again = Remembered(tmp_path / "learned.json").get("a")
    settled(curve)
    assert Curve({int(size): value for size, value in again.items()}).target(256) == curve.target(256)


def test_of_a_file_that_was_edited_only_sizes_and_seconds_count() -> None:
    said = {"4": 0.5, "²": 0.1, "9" * 5000: 0.1, "5": 0.1, "0": 0.1, "8": math.inf, "16": math.nan, "32": "1", "64": 0}
    assert seconds_by_size(said) == {4: 0.5}


def test_what_is_asked_for_is_not_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "ENTRIES", 2)
    kept = Remembered()
    kept.put("settled", 1)
    kept.put("once", 2)
    assert kept.get("settled") == 1
    kept.put("new", 3)
    assert (kept.get("settled"), kept.get("once"), kept.get("new")) == (1, None, 3)


def test_the_file_is_written_now_and_then(tmp_path: Path) -> None:
    now = 0.0
    kept = Remembered(tmp_path / "learned.json", clock=lambda: now)
    kept.put("a", 1)
    assert not (tmp_path / "learned.json").exists()
    now = SAVE_SECONDS
    kept.put("b", 2)
    assert json.loads((tmp_path / "learned.json").read_text())["entries"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other", "entries": {"a": 1}}', '{"format": 3}'])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "learned.json").write_text(text)
    assert Remembered(tmp_path / "learned.json").get("a") is None


def test_no_larger_size_is_tried_while_somebody_waits_for_few_samples() -> None:
    curve = Curve()
    learn(curve, lambda size: 1e-4 * size, 30)
    knee = settled(curve)
    tried = set[int]()
    for _ in range(300):
        curve.hush()
        size, _, _ = curve.target(256)
        tried.add(size)
        curve.record(size, 1e-4 * size)
        curve.record(1, 1e-4)
    assert max(tried) == knee
    for _ in range(300):
        size, _, _ = curve.target(256)
        tried.add(size)
        curve.record(size, 1e-4 * size)
    assert max(tried) > knee
