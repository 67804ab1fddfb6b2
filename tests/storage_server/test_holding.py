"""The bytes between reading and sending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.cancel import Cancel, CancelledWork
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.holding import Holding, QueueBytes

TOTAL = 1000


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200)), max_size=80), st.lists(st.floats(0.1, 5), min_size=4)
)
def test_the_bound_is_hard_and_each_can_always_go_on(steps: list[tuple[int, int]], shares: list[float]) -> None:
    queue = QueueBytes(TOTAL)
    with ExitStack() as stack:
        holdings = [
            stack.enter_context(queue.joined(Flow(str(number), shares[number]), 200, 10_000, Cancel()))
            for number in range(4)
        ]
        for number, count in steps:
            holding = holdings[number]
            if not holding.take(count):
                assert holding.held > 0, "a request that holds nothing is never refused"
                holding.give(holding.held)
            assert queue.used_bytes == sum(each.held for each in holdings) <= TOTAL
            assert sum(each.reserved for each in holdings) <= TOTAL
    assert queue.used_bytes == 0


def fill(holding: Holding) -> int:
    while holding.take(10):
        pass
    return holding.held


def test_one_alone_leaves_a_quarter_to_whoever_comes_next() -> None:
    queue = QueueBytes(TOTAL)
    with queue.joined(Flow("slow"), 10, 10_000, Cancel()) as slow:
        assert fill(slow) == 750
        with queue.joined(Flow("next"), 10, 10_000, Cancel()) as other:
            assert fill(other) >= 240


def test_who_wants_little_leaves_its_part_to_the_others() -> None:
    queue = QueueBytes(TOTAL)
    with queue.joined(Flow("small"), 10, 10, Cancel()), queue.joined(Flow("large"), 10, 10_000, Cancel()) as large:
        assert fill(large) >= 740


def test_parts_follow_the_shares_and_the_requests_of_a_tenant_divide_its_own() -> None:
    queue = QueueBytes(TOTAL)
    rich, poor = Flow("rich", 2.0), Flow("poor", 1.0)
    with (
        queue.joined(rich, 10, 10_000, Cancel()) as one,
        queue.joined(rich, 10, 10_000, Cancel()) as two,
        queue.joined(poor, 10, 10_000, Cancel()) as three,
    ):
        assert one.share_bytes == two.share_bytes == three.share_bytes == 300


def test_who_does_not_fit_waits_until_others_gave_enough_back() -> None:
    queue, joined = QueueBytes(TOTAL), threading.Event()

    def later() -> None:
        with queue.joined(Flow("b"), 600, 600, Cancel()):
            joined.set()

    with queue.joined(Flow("a"), 500, 10_000, Cancel()):
        thread = threading.Thread(target=later)
        thread.start()
        assert not joined.is_set()
    thread.join(30)
    assert joined.is_set()


def test_what_is_given_back_is_left_for_who_waits() -> None:
    queue, joined = QueueBytes(TOTAL), threading.Event()

    def later() -> None:
        with queue.joined(Flow("b"), 500, 10_000, Cancel()):
            joined.set()

    with queue.joined(Flow("a"), 10, 10_000, Cancel()) as busy:
        share = fill(busy)
        thread = threading.Thread(target=later)
        thread.start()
        until = time.monotonic() + 30
        while busy.share_bytes == share:
            assert time.monotonic() < until, "it never waited"
        for _ in range(TOTAL // 10):  # as it always has something to take again
            busy.give(10)
            busy.take(10)
        assert joined.wait(30)
        thread.join(30)


def test_tenants_that_hold_nothing_are_let_in_first() -> None:
    queue, order, release = QueueBytes(TOTAL), list[str](), threading.Event()

    def wait(name: str) -> None:
        with queue.joined(Flow(name), 400, 400, Cancel()):
            order.append(name)
            release.wait(30)

    with queue.joined(Flow("b"), 200, 10_000, Cancel()):
        with queue.joined(Flow("a"), 200, 10_000, Cancel()):
            with queue.joined(Flow("x"), 500, 10_000, Cancel()):
                threads = [threading.Thread(target=wait, args=(name,)) for name in "bac"]
                for place, thread in enumerate(threads):  # c, who comes last, has nothing yet
                    thread.start()
                    wait_until(lambda place=place: len(queue._line) == place + 1)
            wait_until(lambda: order == ["c"])
        wait_until(lambda: order == ["c", "a"])
        release.set()
    for thread in threads:
        thread.join(30)
    assert order == ["c", "a", "b"], "the last when there was room again"


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once another thread has made it so."""
    turn = threading.Event()
    for _ in range(30_000):
        if condition():
            return
        turn.wait(0.001)
    pytest.fail("it never came to that")


def test_who_leaves_the_line_lets_the_next_in() -> None:
    queue, cancel = QueueBytes(TOTAL), Cancel()
    failures: list[BaseException] = []

    def leaves() -> None:
        try:
            with queue.joined(Flow("b"), 900, 900, cancel):
                pytest.fail("there was no room")
        except CancelledWork as error:
            failures.append(error)

    with queue.joined(Flow("a"), 500, 10_000, Cancel()):
        thread = threading.Thread(target=leaves)
        thread.start()
        cancel.set("left")
        thread.join(30)
        assert failures
        with queue.joined(Flow("c"), 400, 400, Cancel()) as third:
            assert third.take(400)
