"""The link probe, on links whose time is counted and not waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hapi.errors import BusyError, ServerUnreachableError
from profiler import probe_link
from profiler.link import MAX_BYTES, probe_in_turn


class FakeLink:
    """Gives bytes in chunks; each costs time on its own clock."""

    def __init__(self, bytes_per_s: float, latency: float = 0.0, chunk: int = 65536) -> None:
        self.now, self.rate, self.latency, self.chunk = 0.0, bytes_per_s, latency, chunk
        self.asked: list[int] = []
        self.sent = 0
        self.closed = 0

    def clock(self) -> float:
        return self.now

    def fetch(self, count: int) -> Iterator[bytes]:
        self.asked.append(count)
        self.now += self.latency
        try:
            while count:
                size = min(self.chunk, count)
                self.now += size / self.rate
                self.sent += size
                count -= size
                yield bytes(size)
        finally:
            self.closed += 1


@pytest.mark.parametrize("bits_per_s", [1e6, 1e8, 1e9, 1e10])
@pytest.mark.parametrize("latency", [0.0, 0.0005, 0.08])
def test_rate_and_latency_are_found(bits_per_s: float, latency: float) -> None:
    link = FakeLink(bits_per_s / 8, latency)
    found = probe_link(link.fetch, streams=1, clock=link.clock)
    assert found.bandwidth_bits_per_s == pytest.approx(bits_per_s, rel=0.05)
    assert found.latency_seconds == pytest.approx(latency, abs=1e-5)
    assert link.closed == len(link.asked)


def test_transfers_grow_until_one_lasts_long_enough() -> None:
    link = FakeLink(1.25e8)
    probe_link(link.fetch, seconds=0.5, streams=1, clock=link.clock)
    large = [count for count in link.asked if count > 1]
    assert large == sorted(large)
    assert large[-1] / 1.25e8 >= 0.5
    assert link.now < 1.5


def test_a_look_at_a_link_that_is_busy_takes_little_of_it() -> None:
    link = FakeLink(20_000.0)
    found = probe_link(link.fetch, seconds=0.1, streams=1, first_bytes=2_500, latency_probes=1, clock=link.clock)
    assert link.asked == [1, 2_500]
    assert found.bandwidth_bits_per_s == pytest.approx(160_000, rel=0.01)


def test_what_a_look_waits_behind_other_traffic_does_not_count_as_latency() -> None:
    link = FakeLink(20_000.0, latency=0.1)
    found = probe_link(
        link.fetch, seconds=0.1, streams=1, first_bytes=2_500, latency_probes=1, most_latency=0.001, clock=link.clock
    )
    assert link.asked == [1, 2_500]
    assert found.bandwidth_bits_per_s < 160_000


def test_a_short_look_finds_a_far_link_that_became_fast() -> None:
    link = FakeLink(1.25e7, latency=0.06)
    found = probe_link(
        link.fetch, seconds=0.1, max_seconds=2.0, streams=1, first_bytes=2_000, latency_probes=1, clock=link.clock
    )
    assert found.bandwidth_bits_per_s == pytest.approx(1e8, rel=0.05)


def test_a_slow_link_is_given_up_in_time() -> None:
    link = FakeLink(1000, chunk=100)
    found = probe_link(link.fetch, streams=1, max_seconds=5.0, clock=link.clock)
    assert link.now < 5.2
    assert found.bandwidth_bits_per_s == pytest.approx(8000, rel=0.01)


def test_a_fast_link_costs_bounded_bytes() -> None:
    link = FakeLink(1e12)
    found = probe_link(link.fetch, streams=1, max_bytes=10**6, clock=link.clock)
    assert link.sent <= 10**6 + 5
    assert found.bandwidth_bits_per_s == pytest.approx(8e12, rel=0.05)
    assert MAX_BYTES <= 2**28


def test_several_connections_share_a_transfer() -> None:
    asked: list[int] = []
    together = threading.Barrier(4, timeout=30)

    def fetch(count: int) -> Iterator[bytes]:
        if count > 1:
            together.wait()  # fails unless four are under way at once
        asked.append(count)
        yield bytes(count)

    assert probe_link(fetch, max_bytes=2**16, streams=4).bandwidth_bits_per_s > 0
    assert asked[-4:] == [2**14] * 4


def test_a_silent_other_side_is_an_error() -> None:
    with pytest.raises(ServerUnreachableError, match="none of the bytes"):
        probe_link(lambda count: iter(()), streams=1)


def test_a_server_that_others_probe_is_asked_again() -> None:
    link = FakeLink(1e7)
    refusals = [BusyError("4 bandwidth probes are under way.", 0.0)] * 2

    def fetch(count: int) -> Iterator[bytes]:
        if refusals:
            raise refusals.pop()
        return link.fetch(count)

    found = probe_in_turn(fetch, lambda fetch: probe_link(fetch, clock=link.clock, streams=1))
    assert found.bandwidth_bits_per_s == pytest.approx(8e7, rel=0.01)
    assert not refusals
