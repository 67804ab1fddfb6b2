"""Requests under way: halved by refusals, grown by answers, the most wanted first, nobody too early."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_client.window import Place, Window
from hapi.cancel import Cancel, CancelledWork


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@contextmanager
def places(window: Window, count: int) -> Iterator[list[Place]]:
    with ExitStack() as stack:
        yield [stack.enter_context(window.place(number, Cancel())) for number in range(count)]


def test_refusals_halve_once_for_requests_that_were_under_way_together() -> None:
    clock = Clock()
    window = Window(8, clock)
    with places(window, 8) as under_way:
        for place in under_way:
            window.refused(place, 1.0)
        assert window.limit == 4
    clock.seconds = 1.0
    with places(window, 4) as under_way:
        window.refused(under_way[0], 1.0)
        assert window.limit == 2


def test_answers_give_one_place_more_per_round() -> None:
    clock = Clock()
    window = Window(4, clock)
    for _ in range(5):
        with window.place(0, Cancel()) as place:
            window.refused(place, 0.0)
    assert window.limit == 1
    grown = []
    for _ in range(20):
        window.answered()
        grown.append(window.limit)
    assert grown == sorted(grown)
    assert grown[0] == 2
    assert grown[1] == 2
    assert grown[2] == 3
    assert grown[-1] == 4


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 16))
def test_there_is_always_at_least_one_place_and_never_more_than_asked(outcomes: list[bool], most: int) -> None:
    window = Window(most, Clock())
    for good in outcomes:
        with window.place(0, Cancel()) as place:
            if good:
                window.answered()
            else:
                window.refused(place, 0.0)
        assert 1 <= window.limit <= most


def entering(window: Window, number: int, entered: list[int], cancel: Cancel) -> threading.Thread:
    def enter() -> None:
        try:
            with window.place(number, cancel):
                entered.append(number)
        except CancelledWork:
            entered.append(-1)

    thread = threading.Thread(target=enter)
    thread.start()
    return thread


def waits(window: Window, count: int) -> None:
    """Returns once so many wait."""
    with window._changed:
        assert window._changed.wait_for(lambda: len(window._waiting) == count, 10)


def test_the_lowest_number_goes_first_and_everybody_comes_in() -> None:
    window = Window(1, Clock())
    entered: list[int] = []
    with window.place(0, Cancel()):
        threads = []
        for count, number in enumerate((7, 3, 9, 1), 1):
            threads.append(entering(window, number, entered, Cancel()))
            waits(window, count)
    for thread in threads:
        thread.join(10)
    assert entered == [1, 3, 7, 9]


def test_nobody_begins_before_retry_after_is_over() -> None:
    clock = Clock()
    window = Window(2, clock)
    with window.place(0, Cancel()) as place:
        window.refused(place, 500.0)
    clock.seconds = 499.0
    entered: list[int] = []
    thread = entering(window, 1, entered, Cancel())
    waits(window, 1)
    assert entered == []
    clock.seconds = 500.0
    window._wake()
    thread.join(10)
    assert entered == [1]


def test_waiting_ends_when_cancelled() -> None:
    window = Window(1, Clock())
    cancel, entered = Cancel(), []
    with window.place(0, Cancel()):
        thread = entering(window, 1, entered, cancel)
        waits(window, 1)
        cancel.set()
        thread.join(10)
    assert entered == [-1]
    with pytest.raises(CancelledWork), window.place(0, cancel):
        pass
    with window.place(0, Cancel()):
        pass


def test_in_a_forked_child_nobody_is_under_way() -> None:
    window = Window(2)
    with places(window, 2):
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # instead of waiting for ever
            with places(window, 2) as own:
                os._exit(0 if len(own) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
