"""Waiting for room: first come, first served among those who waited long; nobody for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BusyError
from storage_server.memory.turns import LONGEST_SECONDS, Turns


class Story(threading.Condition):
    """A lock under which the next thing happens whenever somebody waits; time passes only then."""

    def __init__(self, *events: Callable[[], object]) -> None:
        super().__init__()
        self.now = 0.0
        self.events = list(events)

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None, "nobody waits for ever"
        assert timeout > 0
        self.now += timeout
        if self.events:
            self.events.pop(0)()
        return True


def of(story: Story) -> Turns:
    return Turns(story, lambda: story.now)


def test_room_that_is_there_is_taken_at_once() -> None:
    turns = of(Story())
    turns.wait("a", lambda: True, "no room")
    assert turns.waiting == 0


def test_nobody_waits_for_ever() -> None:
    story = Story()
    turns = of(story)
    with pytest.raises(BusyError, match="no room") as caught:
        turns.wait("a", lambda: False, "no room")
    assert story.now == LONGEST_SECONDS
    assert caught.value.retry_after_seconds > 0
    assert turns.waiting == 0


@pytest.mark.parametrize(("kind", "passes"), [("another", False), ("same", True)])
def test_new_callers_wait_behind_one_that_is_overdue_but_for_its_own_kind(kind: str, passes: bool) -> None:
    passed: list[bool] = []

    def newcomer() -> None:
        try:
            turns.wait(kind, lambda: True, "later")
            passed.append(True)
        except BusyError:
            passed.append(False)

    story = Story(newcomer)
    turns = of(story)
    with pytest.raises(BusyError):
        turns.wait("same", lambda: False, "no room")
    assert passed == [passes]


def test_before_it_is_overdue_whoever_finds_room_takes_it() -> None:
    story = Story()
    turns = of(story)
    passed: list[bool] = []

    def take() -> bool:
        if not passed:  # asked for the first time: no time has gone by
            passed.append(True)
            turns.wait("b", lambda: True, "later")
            passed.append(True)
        return len(passed) == 2

    turns.wait("a", take, "no room")
    assert story.now == 0


def test_those_who_wait_are_served_in_order() -> None:
    free: list[str] = []
    order: list[str] = []

    def taker(name: str) -> Callable[[], bool]:
        def take() -> bool:
            if free:
                order.append(name)
                free.pop()
            return name in order

        return take

    def second() -> None:
        free.append("room")
        with pytest.raises(BusyError):  # the first is overdue, and stands before it until its own thread goes on
            turns.wait("b", taker("second"), "later")

    story = Story(second)
    turns = of(story)
    turns.wait("a", taker("first"), "no room")
    assert order == ["first"]


def test_a_caller_that_hung_up_waits_no_longer() -> None:
    cancel = Cancel()
    story = Story(lambda: cancel.set("gone"))
    turns = of(story)
    with pytest.raises(CancelledWork):
        turns.wait("a", lambda: False, "no room", cancel)
    assert turns.waiting == 0
