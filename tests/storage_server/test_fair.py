"""Fair queueing, by its properties."""

from __future__ import annotations

import sys
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_server.scheduling.fair import CATCH_UP, REMEMBERED, FairQueue, Flow, Ledger, max_min

COSTS = st.floats(0.01, 1.0)


def served(queue: FairQueue[float], count: int, keep: dict[Flow, float]) -> Counter[Flow]:
    """Serves `count` items, putting one of the cost `keep[flow]` behind each: these flows always have something."""
    got: Counter[Flow] = Counter()
    for _ in range(count):
        popped = queue.pop()
        assert popped is not None
        flow, cost = popped
        got[flow] += cost
        if flow in keep:
            queue.push(flow, keep[flow], keep[flow])
    return got


@given(st.lists(st.tuples(st.floats(0.1, 10), COSTS), min_size=2, max_size=6), st.integers(1, 200))
def test_received_per_share_differs_by_one_item_of_each_at_most(pairs: list[tuple[float, float]], count: int) -> None:
    costs = {Flow(str(number), share): cost for number, (share, cost) in enumerate(pairs)}
    queue: FairQueue[float] = FairQueue()
    for flow, cost in costs.items():
        queue.push(flow, cost, cost)
    got = served(queue, count, costs)
    for one, other in ((a, b) for a in costs for b in costs):
        bound = costs[one] / one.share + costs[other] / other.share
        assert abs(got[one] / one.share - got[other] / other.share) <= bound + 1e-6


@given(st.lists(st.tuples(st.integers(0, 4), COSTS), max_size=100))
def test_everything_comes_out_once_and_in_order_within_a_flow(items: list[tuple[int, float]]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (flow, cost) in enumerate(items):
        queue.push(Flow(str(flow)), number, cost)
    out = [queue.pop() for _ in items]
    assert queue.pop() is None
    assert len(queue) == 0
    for name in {flow for flow, _ in items}:
        mine = [item for popped in out if popped for flow, item in [popped] if flow.name == str(name)]
        assert mine == [number for number, (flow, _) in enumerate(items) if flow == name]


@given(st.integers(1, 1000), COSTS)
def test_a_newcomer_is_next_whatever_others_received_before(before: int, cost: float) -> None:
    queue: FairQueue[float] = FairQueue()
    large, small = Flow("a large one"), Flow("small")
    queue.push(large, cost, cost)
    served(queue, before, {large: cost})
    queue.push(small, cost, cost)
    popped = queue.pop()
    assert popped is not None
    assert popped[0] == small


@given(st.integers(1, 100), COSTS)
def test_an_idle_flow_saves_up_no_credit(idle: int, cost: float) -> None:
    """One that was away is served as often as the others from its return on, not more."""
    queue: FairQueue[float] = FairQueue()
    busy, away = Flow("busy"), Flow("away")
    queue.push(away, cost, cost)
    queue.push(busy, cost, cost)
    served(queue, 2 + idle, {busy: cost})
    queue.push(away, cost, cost)
    got = served(queue, 20, {busy: cost, away: cost})
    assert abs(got[busy] - got[away]) <= 2 * cost + 1e-6


def rounds(ledger: Ledger, count: int, *flows: Flow) -> Counter[Flow]:
    """Serves one second at a time to flows that always have something waiting."""
    got: Counter[Flow] = Counter()
    for _ in range(count):
        flow = ledger.order(flows)[0]
        ledger.serve(flow, 1.0)
        got[flow] += 1
    return got


@given(st.integers(1, 40), st.floats(0.5, 2.0))
def test_who_could_not_be_let_in_catches_up_while_the_others_go_on(waited: int, share: float) -> None:
    ledger, old, late = Ledger(), Flow("old"), Flow("late", share)
    ledger.join(old)
    ledger.ask(late)
    before = rounds(ledger, waited, old)
    ledger.let_in(late)
    ledger.join(late)
    for _ in range(waited):
        got = rounds(ledger, 12, old, late)
        before += got
        assert got[late] <= 1 + (got[old] + 1) * CATCH_UP * share, "a larger share, but not everything"
        ledger.leave(late)  # what it is owed is not lost when it has nothing there for a moment
        ledger.join(late)
    assert abs(before[old] - before[late] / share) <= 2 + 2 / share
    more = rounds(ledger, 60, old, late)
    assert abs(more[old] - more[late] / share) <= 2 + 2 / share, "and then is served as all are"


def test_who_is_served_meanwhile_is_owed_nothing() -> None:
    ledger, one, other = Ledger(), Flow("one"), Flow("other")
    for flow in (one, other):
        ledger.join(flow)
    ledger.ask(one)
    rounds(ledger, 20, one, other)
    ledger.let_in(one)
    assert rounds(ledger, 20, one, other) == {one: 10, other: 10}


def test_two_requests_that_ask_at_once_are_owed_the_time_once() -> None:
    ledger, old, late = Ledger(), Flow("old"), Flow("late")
    ledger.join(old)
    ledger.ask(late)
    ledger.ask(late)
    got = rounds(ledger, 10, old)
    ledger.let_in(late)
    ledger.let_in(late)
    ledger.join(late)
    got += rounds(ledger, 60, old, late)
    assert abs(got[old] - got[late]) <= 2


def test_a_small_job_beside_a_large_one_takes_time_in_proportion_to_itself() -> None:
    queue: FairQueue[float] = FairQueue()
    for _ in range(1000):
        queue.push(Flow("large"), 1.0, 1.0)
    for _ in range(10):
        queue.push(Flow("small"), 1.0, 1.0)
    order = [popped[0].name for _ in range(1010) if (popped := queue.pop())]
    assert max(place for place, name in enumerate(order) if name == "small") <= 20


def test_costs_are_corrected_after_the_fact() -> None:
    queue: FairQueue[str] = FairQueue()
    liar, honest = Flow("liar"), Flow("honest")
    for _ in range(30):
        queue.push(liar, "work", 0.1)
        queue.push(honest, "work", 1.0)
    seconds: Counter[str] = Counter()
    for _ in range(20):
        popped = queue.pop()
        assert popped is not None
        seconds[popped[0].name] += 1
        if popped[0] == liar:
            queue.correct(liar, 0.9)
    assert abs(seconds["liar"] - seconds["honest"]) <= 2


def test_only_those_that_may_are_served() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(Flow("a"), "a", 1)
    queue.push(Flow("b"), "b", 1)
    assert queue.pop(lambda flow: flow.name == "b") == (Flow("b"), "b")
    assert queue.pop(lambda flow: flow.name == "b") is None
    assert queue.pop() == (Flow("a"), "a")


def test_an_item_can_leave_the_middle_of_its_line() -> None:
    queue: FairQueue[object] = FairQueue()
    first, second = object(), object()
    queue.push(Flow("a"), first, 1)
    queue.push(Flow("a"), second, 1)
    assert queue.remove(Flow("a"), first)
    assert not queue.remove(Flow("a"), first)
    assert not queue.remove(Flow("b"), first)
    assert queue.pop() == (Flow("a"), second)
    assert queue.flows == ()


def test_what_stands_in_several_lines_is_taken_once_in_the_turn_that_comes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    large, small = Flow("large"), Flow("small")
    first, *_ = [queue.push(large, f"large {number}", 1.0) for number in range(3)]
    last = queue.push(large, "wanted by both", 1.0)
    assert queue.share(last, small)
    assert queue.share(last, small)
    assert len(queue) == 4
    assert queue.seconds == 4.0
    assert queue.pop() == (large, "large 0")
    assert queue.pop() == (small, "wanted by both")
    assert not queue.share(first, small)
    assert queue.flows == (large,)
    assert [queue.pop() for _ in range(3)] == [(large, "large 1"), (large, "large 2"), None]
    assert len(queue) == 0


def test_flows_of_the_past_are_forgotten() -> None:
    ledger = Ledger()
    for number in range(10 * REMEMBERED):
        flow = Flow(str(number))
        ledger.join(flow)
        ledger.serve(flow, 1.0)
        ledger.leave(flow)
    steady = Flow("steady")
    for _ in range(20):
        ledger.join(steady)
        ledger.serve(steady, 1.0)
        ledger.leave(steady)
    assert len(ledger._tags) <= REMEMBERED + 1


@given(
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 500), st.floats(0.1, 10)), min_size=1, max_size=8),
)
def test_max_min_gives_all_that_is_wanted_and_there(total: float, pairs: list[tuple[float, float]]) -> None:
    wants = {number: want for number, (want, _) in enumerate(pairs)}
    weights = {number: weight for number, (_, weight) in enumerate(pairs)}
    given_ = max_min(total, wants, weights)
    assert sum(given_.values()) == pytest.approx(min(total, sum(wants.values())))
    for one in wants:
        assert given_[one] <= wants[one]
        if given_[one] < wants[one] - 1e-6:  # who does not get all it wants has as much per weight as any other
            assert all(given_[one] / weights[one] >= given_[other] / weights[other] - 1e-6 for other in wants)


def test_what_waits_can_be_read_while_it_changes() -> None:
    """By threads that say when to come back, beside the event loop that lets requests in."""
    queue: FairQueue[int] = FairQueue()
    flows = [Flow(str(number)) for number in range(300)]
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for number, flow in enumerate(flows):
                queue.push(flow, number, 0.1)
            while queue.pop() is not None:
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(queue.seconds < 31 for _ in range(3000))
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert queue.seconds == 0.0
