"""Which batch is next: ripeness, whose turn it is, who pays, what is dropped."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from awkward_models import Archive
from hypothesis import given
from hypothesis import strategies as st

from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.lanes import Lanes
from storage_server.extraction.rows import Batch, Call, Row
from storage_server.extraction.sizing import Decision, Waiting
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.rates import Rates

A, B = Flow("a"), Flow("b")
ROW_SECONDS = 0.1


class Fixed:
    """A policy of one size."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        return Decision(self.samples, "limit")

    def failed(self, prefix: Prefix, samples: int) -> int:
        return samples // 2

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def prefixes(archive: Archive) -> tuple[Prefix, Prefix]:
    return tuple(Prefix.of(archive.graph, cut, "cpu", archive.digest) for cut in ("stem.2", "output"))  # type: ignore[return-value]


def lanes_of(
    prefixes: Sequence[Prefix], size: int, clock: Clock | None = None, requests: Sequence[Waiting] = ()
) -> Lanes:
    rates = Rates()
    for prefix in prefixes:
        rates.learned(prefix.key, 1, ROW_SECONDS)
    return Lanes(Fixed(size), rates, lambda: requests, clock=clock or Clock())


def wanting(prefix: Prefix, **samples: int) -> list[Waiting]:
    """Requests of tenants for so many samples each."""
    return [Waiting(tenant, prefix, count, 1, count) for tenant, count in samples.items()]


def row(prefix: Prefix, *flows: Flow, wanted: bool = True) -> Row:
    return Row(prefix, torch.zeros(1), set(flows), lambda: wanted, lambda outcome: [])


def batch(lanes: Lanes) -> Batch:
    found = lanes.next()
    assert isinstance(found, Batch)
    return found


def test_a_lane_waits_for_rows_that_are_on_their_way_but_not_longer_than_a_batch_takes(
    prefixes: Sequence[Prefix],
) -> None:
    clock = Clock()
    lanes = lanes_of(prefixes, 4, clock)
    lanes.expect(prefixes[0], 3)
    lanes.add(row(prefixes[0], A))
    assert lanes.next() is None
    assert lanes.due() == pytest.approx(4 * ROW_SECONDS)
    clock.now = 4 * ROW_SECONDS + 1e-9
    assert len(batch(lanes).rows) == 1


def test_a_request_that_waited_to_be_let_in_is_served_more_than_others_for_a_while(prefixes: Sequence[Prefix]) -> None:
    executor = DeviceExecutor(lanes_of(prefixes, 1), lambda batch: None)
    executor.close()
    lanes = executor._lanes
    with executor.asking(B) as let_in:
        for _ in range(40):
            lanes.add(row(prefixes[0], A))
        before = Counter(next(iter(batch(lanes).parts)) for _ in range(6))
        let_in()
        let_in()
        for _ in range(30):
            lanes.add(row(prefixes[0], B))
        got = Counter(next(iter(batch(lanes).parts)) for _ in range(12))
    assert before == {A: 6}
    assert got[B] == 9
    assert Counter(next(iter(batch(lanes).parts)) for _ in range(10)) == {A: 5, B: 5}
    assert not lanes._ledger._asking


def test_requests_are_asked_about_once_for_all_lanes(prefixes: Sequence[Prefix]) -> None:
    asked: list[int] = []
    lanes = lanes_of(prefixes, 1)
    lanes._requests = lambda: asked.append(1) or []
    for prefix in prefixes:
        lanes.add(row(prefix, A))
    batch(lanes)
    assert len(asked) == 1
    lanes.decide_anew()
    batch(lanes)
    assert len(asked) == 2


def test_a_whole_batch_does_not_wait_and_neither_do_the_last_rows(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    lanes.expect(prefixes[0], 1)
    for _ in range(5):
        lanes.add(row(prefixes[0], A))
    assert len(batch(lanes).rows) == 4
    assert lanes.next() is None
    lanes.expect(prefixes[0], -1)
    assert len(batch(lanes).rows) == 1
    assert lanes.next() is None
    assert lanes.due() is None


def test_the_last_rows_are_computed_in_halves_where_that_takes_long(
    prefixes: Sequence[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(rows: int, expected: int = 0) -> list[int]:
        lanes = lanes_of(prefixes, 16)
        lanes.expect(prefixes[0], expected)
        for _ in range(rows):
            lanes.add(row(prefixes[0], A))
        found: list[int] = []
        while isinstance(formed := lanes.next(), Batch):
            found.append(len(formed.rows))
        return found

    assert sizes(16) == [8, 4, 4]
    assert sizes(40) == [16, 16, 4, 4]
    assert sizes(15) == [8, 7]
    assert sizes(9) == [4, 5]
    assert sizes(7) == [7]
    assert sizes(16, expected=1) == [16]
    monkeypatch.setattr("storage_server.extraction.lanes.LAST_SECONDS", 16 * ROW_SECONDS)
    assert sizes(16) == [16]


def test_a_size_that_is_tried_is_tried_to_the_end(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 16)
    lanes._policy = type("Exploring", (), {"decide": lambda *_: Decision(16, "exploring")})()
    for _ in range(16):
        lanes.add(row(prefixes[0], A))
    assert len(batch(lanes).rows) == 16


def test_the_tenants_rows_come_first_and_others_fill_the_batch(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    for _ in range(10):
        lanes.add(row(prefixes[0], A))
    first = batch(lanes)
    lanes.add(row(prefixes[0], B))
    second = batch(lanes)
    assert [found.flows for found in first.rows] == [{A}] * 4
    assert [found.flows for found in second.rows] == [{B}, {A}, {A}, {A}]
    spent = lanes.settle(second, 0.8)
    assert spent == {A: pytest.approx(0.6), B: pytest.approx(0.2)}


def test_who_wants_few_gets_a_small_batch_that_others_who_want_few_share(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 8, requests=wanting(prefixes[0], a=1000, b=1, c=2))
    lanes.expect(prefixes[0], 900)
    for _ in range(24):
        lanes.add(row(prefixes[0], A))
    lanes.settle(batch(lanes), 0.8)
    for tenant in ("b", "c", "c"):
        lanes.add(row(prefixes[0], Flow(tenant)))
    small, large = batch(lanes), batch(lanes)
    assert Counter(next(iter(found.flows)).name for found in small.rows) == {"b": 1, "c": 2}
    assert [found.flows for found in large.rows] == [{A}] * 8
    assert (small.is_small, large.is_small) == (True, False)


def test_nobody_has_few_where_all_have(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 8, requests=wanting(prefixes[0], a=2, b=1))
    for flow in (A, B, A):
        lanes.add(row(prefixes[0], flow))
    assert len(batch(lanes).rows) == 3


def test_a_small_batch_does_not_wait_for_the_lane_to_fill_but_for_its_own_rows(prefixes: Sequence[Prefix]) -> None:
    clock = Clock()
    lanes = lanes_of(prefixes, 16, clock, wanting(prefixes[0], a=1000, b=2))
    lanes.expect(prefixes[0], 100)
    lanes.add(row(prefixes[0], A))
    lanes.add(row(prefixes[0], B))
    assert lanes.next() is None
    assert lanes.due() == pytest.approx(2 * ROW_SECONDS)
    lanes.add(row(prefixes[0], B))
    assert len(batch(lanes).rows) == 2


@given(st.sampled_from([2, 4, 8, 32]), st.lists(st.floats(0.0, 30.0), min_size=1, max_size=30), st.integers(1, 8))
def test_one_image_waits_for_the_running_batch_and_a_small_one(
    prefixes: Sequence[Prefix], size: int, pauses: list[float], few: int
) -> None:
    """Beside a large job that always has three batches there, whenever the few come; a pass takes a time of its own."""
    few = min(few, max(1, size // 4))
    clock, wanted = Clock(), wanting(prefixes[0], a=10_000)
    lanes = lanes_of(prefixes, size, clock, wanted)
    lanes.expect(prefixes[0], 10_000)
    fixed = 0.3  # seconds of a pass beside those of its rows

    def one_batch(arrive: float | None = None) -> Batch:
        for _ in range(3 * size - lanes.waiting.total()):
            lanes.add(row(prefixes[0], A))
        found = batch(lanes)
        begun = clock.now
        if arrive is not None:
            clock.now = arrive
            for _ in range(few):
                lanes.add(row(prefixes[0], B))
            wanted[1:] = wanting(prefixes[0], b=few)
            lanes.decide_anew()
        clock.now = begun + fixed + len(found.rows) * ROW_SECONDS
        lanes.settle(found, clock.now - begun)
        return found

    whole, small = fixed + size * ROW_SECONDS, fixed + few * ROW_SECONDS
    for pause in pauses:
        for _ in range(int(pause) % 3):
            one_batch()
        came = clock.now + pause % whole
        one_batch(arrive=came)
        while not any(B in found.flows for found in one_batch().rows):
            pass
        assert clock.now - came <= whole + small + 1e-9
        del wanted[1:]
        lanes.decide_anew()


def test_an_unripe_lane_does_not_keep_the_device_from_another(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    lanes.expect(prefixes[0], 5)
    lanes.add(row(prefixes[0], A))
    lanes.add(row(prefixes[1], B))
    assert batch(lanes).prefix is prefixes[1]


def test_rows_that_nobody_wants_are_dropped_and_cost_nothing(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    for wanted in (True, False, True):
        lanes.add(row(prefixes[0], A, wanted=wanted))
    found = batch(lanes)
    assert (len(found.rows), len(found.dropped)) == (2, 1)
    assert not lanes._lanes


def test_a_row_for_two_is_computed_once_and_each_pays_half(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    shared = row(prefixes[0], A)
    lanes.add(shared)
    lanes.share(shared, B)
    found = batch(lanes)
    assert len(found.rows) == 1
    assert lanes.settle(found, 1.0) == {A: pytest.approx(0.5), B: pytest.approx(0.5)}
    assert lanes.next() is None


def test_a_row_goes_when_the_last_who_wanted_it_went(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 4)
    shared = row(prefixes[0], A, B)
    lanes.add(shared)
    lanes.unshare(shared, A)
    assert lanes.waiting.total() == 1
    lanes.unshare(shared, B)
    assert lanes.waiting.total() == 0
    assert lanes.next() is None
    assert not lanes._lanes, "a lane without rows would keep its model in memory"


def test_calls_take_their_turn_among_the_batches(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, 1)
    for _ in range(3):
        lanes.add(row(prefixes[0], A))
    lanes.settle(batch(lanes), 5.0)
    call = Call(B, list)
    lanes.add_call(call)
    assert lanes.next() is call
    lanes.settle_call(call, 100.0)
    lanes.add_call(call)
    assert isinstance(lanes.next(), Batch), "who had a hundred seconds waits for who had five"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=80),
    st.integers(1, 8),
)
def test_every_row_is_computed_once_whoever_it_is_for(
    prefixes: Sequence[Prefix], arrivals: list[tuple[int, int]], size: int
) -> None:
    lanes = lanes_of(prefixes, size)
    rows = [row(prefixes[which], Flow(str(tenant))) for tenant, which in arrivals]
    for each in rows:
        lanes.add(each)
    seen: list[Row] = []
    while (found := lanes.next()) is not None:
        assert isinstance(found, Batch)
        assert 1 <= len(found.rows) <= size
        assert {each.prefix.key for each in found.rows} == {found.prefix.key}
        seen += found.rows
        lanes.settle(found, 0.5)
    assert Counter(map(id, seen)) == Counter(map(id, rows))
    assert not lanes._standing


def test_tenants_of_different_models_have_equal_parts_of_the_device(prefixes: Sequence[Prefix]) -> None:
    """The second model is ten times as slow: its tenant gets a tenth of the samples, in the same time."""
    lanes = lanes_of(prefixes, 4)
    rates = lanes._rates
    for _ in range(50):
        rates.learned(prefixes[1].key, 1, 10 * ROW_SECONDS)
    for _ in range(400):
        lanes.add(row(prefixes[0], A))
        lanes.add(row(prefixes[1], B))
    seconds: Counter[Flow] = Counter()
    for _ in range(60):
        found = batch(lanes)
        spent = lanes.settle(found, len(found.rows) * rates.seconds(found.prefix.key))
        for flow, part in spent.items():
            seconds[flow] += part  # type: ignore[assignment]
    assert abs(seconds[A] - seconds[B]) <= 4 * 10 * ROW_SECONDS + 4 * ROW_SECONDS


def test_a_policy_that_fails_once_does_not_end_the_device(prefixes: Sequence[Prefix]) -> None:
    class Failing(Fixed):
        def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
            if self.samples:
                self.samples = 0
                raise ZeroDivisionError
            return Decision(1, "limit")

    done: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    executor = DeviceExecutor(Lanes(Failing(1), Rates(), list), done.put)
    executor.expect(prefixes[0])
    executor.submit(row(prefixes[0], A))
    assert len(done.get(timeout=30).rows) == 1
    executor.close()


def test_a_device_that_is_not_there_is_no_endless_wait() -> None:
    before = threading.active_count()
    with pytest.raises((RuntimeError, AssertionError)):
        DeviceExecutor(Lanes(Fixed(1), Rates(), list), print, "cuda:99")
    assert threading.active_count() == before
