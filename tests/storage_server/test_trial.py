"""What small requests say of the server as a whole, beside what its parts take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from profiler import LoadCost, TierProfile, TierRow
from storage_server.extraction.trial import (
    PASSES,
    answer_seconds,
    as_run,
    beyond,
    deeper_rows,
    in_jobs,
    light_row,
    seconds_per_sample,
)

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
    assert requests.asked == ["input", "b"]


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


def test_what_deeper_requests_take_beyond_their_parts_is_the_prefix_s() -> None:
    more = beyond(TIER, 0.010, 16, Requests(c=0.0211, output=0.03401))
    assert more == pytest.approx({"c": 0.001, "output": 0.004})
    # b is the light cut, whose excess is loading's; between the trials in proportion, before it none
    found = in_jobs(TIER, more)
    assert [row.prefix_seconds for row in found.rows] == pytest.approx([0.0, 0.001, 0.004, 0.011, 0.024])
    assert [row.suffix_seconds for row in found.rows] == [row.suffix_seconds for row in ROWS]
    rows = (*ROWS[:4], TierRow("d", 100, 0.015, 0.005), ROWS[4])
    assert in_jobs(replace(TIER, rows=rows), more).rows[4].prefix_seconds == pytest.approx(0.0175)


def test_what_lies_deeper_than_the_last_trial_is_as_much_slower() -> None:
    slow = replace(TIER, rows=(*ROWS, TierRow("deep", 10, 0.07, 0.0)), fits_to="deep")
    assert [row.name for row in deeper_rows(slow, 0.010, 16)] == ["output"]
    found = in_jobs(slow, beyond(slow, 0.010, 16, Requests(output=0.03201)))
    assert [row.prefix_seconds for row in found.rows[4:]] == pytest.approx([0.022, 0.077])


def test_prefixes_become_no_shorter_and_without_memory_or_on_an_accelerator_stay() -> None:
    assert in_jobs(TIER, beyond(TIER, 0.010, 16, Requests(c=0.001, output=0.001))) == TIER
    assert in_jobs(TIER, beyond(TIER, 0.010, 16, Requests(c=None, output=None))) == TIER
    requests = Requests()
    assert beyond(replace(TIER, device="cuda:0"), 0.010, 16, requests) == {}
    assert requests.asked == []


def test_what_more_samples_take_counts_and_the_faster_pass_of_each() -> None:
    asked = []

    def whole(count: int) -> float:
        asked.append(count)
        return 1.0 + 0.05 * count + (0.2 if len(asked) % PASSES else 0.0)  # a second until anything comes

    assert seconds_per_sample(whole, 32) == pytest.approx(0.05)
    assert asked == [32] * PASSES + [8] * PASSES


def test_a_request_that_cannot_be_shorter_counts_whole() -> None:
    assert seconds_per_sample(lambda count: 0.1 * count, 3) == pytest.approx(0.1)
    assert seconds_per_sample(lambda count: 1.0, 32) == 0.0


def test_an_answer_is_timed_to_its_end() -> None:
    now = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal now
        for seconds in (5.0, 0.1, 0.1):
            now += seconds
            yield b"piece"
        now += 1.0

    assert answer_seconds(pieces(), clock=lambda: now) == pytest.approx(6.2)
