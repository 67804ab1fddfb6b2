"""What requests hold of the queues for one sample."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from hapi.cancel import Cancel
from storage_server.scheduling.deposits import Deposit
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.holding import QueueBytes

TOTAL, LEAST = 1000, 200
ROW = 5


def test_the_first_holds_the_whole_the_others_a_row_and_once_done_all_do() -> None:
    queue = QueueBytes(TOTAL)
    with queue.joined(Flow("a"), LEAST, TOTAL, Cancel()) as a, queue.joined(Flow("b"), LEAST, TOTAL, Cancel()) as b:
        first, other = Deposit(a, 100, ROW), Deposit(b, 100, ROW)
        assert first.take(is_first=True)
        assert other.take(is_first=False)
        assert (a.held, b.held) == (100, ROW)
        a.give(first.landed())
        b.give(other.landed())
        assert (a.held, b.held) == (first.held, other.held) == (ROW, ROW)


def test_who_held_a_row_of_what_is_kept_no_longer_takes_the_whole() -> None:
    queue = QueueBytes(TOTAL)
    with queue.joined(Flow("a"), LEAST, LEAST, Cancel()) as holding:
        one = Deposit(holding, 150, ROW)
        assert one.take(is_first=False)
        assert one.take(is_first=True)
        assert holding.held == 150
        assert not Deposit(holding, 150, ROW).take(is_first=True)


def test_while_others_hand_on_everybody_still_has_its_least() -> None:
    queue = QueueBytes(600)
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(queue.joined(Flow(name), LEAST, LEAST, Cancel())) for name in "abc")
        first, other = Deposit(a, LEAST, ROW), Deposit(b, LEAST, ROW)
        assert first.take(is_first=True)
        assert Deposit(b, LEAST - ROW, ROW).take(is_first=True)
        assert other.take(is_first=False)
        other.take_over(first)
        assert Deposit(c, LEAST, ROW).take(is_first=True), "or it would wait for ever"
        assert queue.used_bytes == 600


def test_who_is_left_takes_over_what_it_would_not_get() -> None:
    queue = QueueBytes(TOTAL)
    with queue.joined(Flow("b"), LEAST, LEAST, Cancel()) as b:
        with queue.joined(Flow("a"), LEAST, LEAST, Cancel()) as a:
            first, other = Deposit(a, 200, ROW), Deposit(b, 200, ROW)
            assert first.take(is_first=True)
            assert Deposit(b, 190, ROW).take(is_first=True)
            assert other.take(is_first=False)
            other.take_over(first)
            assert (a.held, first.held) == (ROW, ROW)
        assert (b.held, other.held) == (190 + 200, 200)
        b.give(other.landed())
        assert b.held == queue.used_bytes == 190 + ROW


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["take", "land", "leave"])), max_size=60))
def test_the_bound_is_kept_whoever_goes(steps: Sequence[tuple[int, str]]) -> None:
    """Four requests want the same samples, one after the other; those that leave hand on and come again."""
    queue = QueueBytes(TOTAL)
    with ExitStack() as stack:
        holdings = [stack.enter_context(queue.joined(Flow(str(n)), LEAST, 10_000, Cancel())) for n in range(4)]
        flying: list[Deposit] = []
        for number, step in steps:
            holding = holdings[number]
            mine = [deposit for deposit in flying if deposit._holding is holding]
            if step == "take" and not mine:
                deposit = Deposit(holding, 150, ROW)
                if deposit.take(is_first=not flying):
                    flying.append(deposit)
            elif step == "land":
                for deposit in flying:
                    deposit._holding.give(deposit.landed() + ROW)
                flying.clear()
            elif step == "leave" and mine:
                flying.remove(mine[0])
                if flying:
                    flying[0].take_over(mine[0])
                holding.give(mine[0].held)
            assert queue.used_bytes == sum(deposit.held for deposit in flying)
            assert queue.used_bytes == (150 + (len(flying) - 1) * ROW if flying else 0)
            assert sum(each.reserved for each in holdings) <= TOTAL
