"""What small requests say of the server as a whole, beside what its parts take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from profiler import LoadCost, TierProfile, TierRow
from storage_server.extraction.trial import PASSES, as_run, light_row, seconds_per_sample

ROWS = (
    TierRow("input", 600, 0.0, 0.020),
    TierRow("a", 900, 0.001, 0.019),
    TierRow("b", 300, 0.004, 0.016),
    TierRow("c", 100, 0.010, 0.010),
    TierRow("output", 10, 0.020, 0.0),
)
TIER = TierProfile("cpu", 8, ROWS, encode_seconds_per_byte=1e-6)
LOAD = LoadCost(load_seconds=0.008, read_seconds=0.005)


class Requests:
    """Runs requests that take as long as the test says."""

    def __init__(self, **seconds: float | None) -> None:
        self._seconds, self.asked = seconds, list[str]()

    def __call__(self, cut: str) -> float | None:
        self.asked.append(cut)
        return self._seconds[cut]


def test_what_a_request_takes_beyond_graph_and_bytes_is_loading() -> None:
    requests = Requests(input=0.007, b=0.0143)
    found = as_run(LOAD, TIER, requests)
    assert (found.read_seconds, found.load_seconds) == (0.007, pytest.approx(0.010))  # 14.3 - 4 - 0.3 ms
    assert requests.asked == ["input"] * PASSES + ["b"] * PASSES


def test_the_faster_pass_counts() -> None:
    taken = iter([0.009, 0.007, 0.0143, 0.020])
    found = as_run(LOAD, TIER, lambda _: next(taken))
    assert (found.read_seconds, found.load_seconds) == (0.007, pytest.approx(0.010))


def test_nothing_becomes_less_than_it_is_apart() -> None:
    assert as_run(LOAD, TIER, Requests(input=0.001, b=0.001)) == LOAD


def test_where_decoding_and_graph_overlap_the_slower_one_counts() -> None:
    device = replace(TIER, device="cuda:0")
    assert as_run(LOAD, device, Requests(input=0.005, b=0.0143)).load_seconds == pytest.approx(0.014)
    assert as_run(LOAD, device, Requests(input=0.005, b=0.004)) == LOAD


def test_a_trial_without_memory_leaves_loading_as_it_is() -> None:
    assert as_run(LOAD, TIER, Requests(input=0.007, b=None)) == replace(LOAD, read_seconds=0.007)


def test_the_trial_is_light_in_seconds_and_bytes_and_fits() -> None:
    assert light_row(TIER) == ROWS[2]
    assert light_row(replace(TIER, fits_to="a")) == ROWS[1]
    assert light_row(replace(TIER, fits_to="input")) is None
    heavy = tuple(replace(row, prefix_seconds=0.02) for row in ROWS)
    assert light_row(replace(TIER, rows=heavy)) == heavy[1]


def test_an_answer_counts_once_it_flows() -> None:
    now = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal now
        for seconds in (5.0, *[0.1] * 9):
            now += seconds
            yield b"x" * 10

    # the first piece comes late; from the third on seven tenths of the samples take 0.7 s
    assert seconds_per_sample(pieces(), 20, clock=lambda: now) == pytest.approx(0.05)


def test_an_answer_of_one_piece_counts_whole() -> None:
    ticks = iter([1.0, 3.0])
    assert seconds_per_sample([b"all"], 4, clock=lambda: next(ticks)) == pytest.approx(0.5)
