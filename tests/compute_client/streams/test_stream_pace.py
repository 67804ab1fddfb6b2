"""The pace of a stream, from the moments at which its batches arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compute_client.streams.pace import LEAST_FILLS, STARTING, Rule, pace_of, watch
from hapi.errors import BatchTimeoutError


class Clock:
    """Time that goes on only when a batch arrives."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def batches(self, *waits: float, samples: int = 8) -> Iterator[int]:
        """A batch after each of these seconds."""
        for wait in waits:
            self.now += wait
            yield samples


def test_the_filling_of_the_pipeline_does_not_count() -> None:
    clock = Clock()
    pace = watch(clock.batches(5.0, *[0.4] * 100), Rule(8, 16, 3.0, 60.0), clock)
    assert pace.seconds_per_sample == pytest.approx(0.05)
    assert not pace.is_bound
    assert pace.samples == 8 * 10  # two to fill, eight for three seconds
    assert pace.seconds == pytest.approx(5.0 + 9 * 0.4)


def test_a_stream_is_watched_for_several_times_what_fills_it() -> None:
    clock = Clock()
    pace = watch(clock.batches(*[0.4] * 100), Rule(16, 32, 0.1, 60.0), clock)
    assert pace.samples == 32 + LEAST_FILLS * 32


def test_what_waited_for_a_late_sample_does_not_make_a_stream_fast() -> None:
    clock = Clock()
    late = [3.2, *[0.0] * 7]  # eight batches of a pipeline that holds eight
    pace = watch(clock.batches(*[0.4] * 12, *late, *late, *[0.4] * 100), Rule(32, 64, 0.1, 60.0), clock)
    assert pace.seconds_per_sample == pytest.approx(0.05, rel=0.25)


@pytest.mark.parametrize("start", range(4))
def test_bursts_do_not_disturb_the_pace(start: int) -> None:
    clock = Clock()
    burst = [0.8, 0.0, 0.0, 0.0]
    waits = [*burst[start:], *burst * 50]
    pace = watch(clock.batches(*waits), Rule(32, 32, 1.0, 60.0), clock)
    assert pace.seconds_per_sample == pytest.approx(0.025)


def test_a_stream_that_is_too_slow_is_given_up_and_bounded() -> None:
    clock = Clock()
    pace = watch(clock.batches(*[4.0] * 100), Rule(16, 16, 2.0, 7.0), clock)
    assert pace.is_bound
    assert pace.samples == 16
    assert pace.seconds_per_sample == pytest.approx((8.0 - STARTING) / 32)
    assert pace.seconds_per_sample <= 4.0 / 8


def test_a_stream_that_is_slower_for_certain_is_given_up_at_once() -> None:
    clock = Clock()
    pace = watch(clock.batches(*[0.8] * 100), Rule(16, 16, 9.0, 60.0, give_up=0.05), clock)
    assert pace.is_bound
    assert pace.samples == 32  # 3.2 s: 48 samples, all that can be done by then, should have taken 2.4 s and the start
    assert 0.05 < pace.seconds_per_sample <= 0.1


def test_a_batch_that_does_not_come_in_time_gives_it_up_as_well() -> None:
    clock = Clock()

    def batches() -> Iterator[int]:
        yield from clock.batches(1.0)
        clock.now += 6.0
        raise BatchTimeoutError("no batch within 6 s")

    pace = watch(batches(), Rule(16, 16, 2.0, 7.0), clock)
    assert pace.is_bound
    assert pace.seconds_per_sample == pytest.approx((7.0 - STARTING) / 24)


def test_a_pace_is_taken_over_whole_rounds() -> None:
    assert pace_of([(8, 1.0), (16, 1.8), (24, 2.6)], 16) == pytest.approx(0.1)
    assert pace_of([(8, 1.0), (16, 1.1), (24, 2.0), (32, 2.1), (40, 3.0)], 16) == pytest.approx(1.0 / 16)
