"""Retries end: by number, by time since the last progress, and at once for what is final."""

from __future__ import annotations

import pytest

from hapi.backoff import Backoff, RetryPolicy, again
from hapi.cancel import Cancel, CancelledWork
from hapi.errors import (
    BusyError,
    ForbiddenError,
    ServerUnreachableError,
)

QUICK = RetryPolicy(patience_seconds=60, attempts=4, first_seconds=0.0, longest_seconds=0.0)


class Counted:
    def __init__(self, failures: list[Exception]) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_passing_troubles_are_tried_again_until_attempts_are_spent() -> None:
    call = Counted([ServerUnreachableError("gone"), BusyError("full", 0.0)])
    assert again(call, QUICK) == "done"
    assert call.calls == 3
    call = Counted([ServerUnreachableError("gone")] * 9)
    with pytest.raises(ServerUnreachableError):
        again(call, QUICK)
    assert call.calls == 4


def test_final_errors_are_not_tried_again() -> None:
    call = Counted([ForbiddenError("no")])
    with pytest.raises(ForbiddenError):
        again(call, QUICK)
    assert call.calls == 1


def test_no_patience_is_no_second_try() -> None:
    call = Counted([ServerUnreachableError("gone")])
    with pytest.raises(ServerUnreachableError):
        again(call, RetryPolicy(patience_seconds=0))
    assert call.calls == 1


def test_progress_begins_anew() -> None:
    backoff = Backoff(QUICK)
    for _ in range(10):
        backoff.pause(ServerUnreachableError("gone"))
        backoff.progress()


def test_a_pause_can_be_cancelled() -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledWork):
        Backoff(RetryPolicy(first_seconds=60, longest_seconds=60), cancel).pause(ServerUnreachableError("gone"))


def test_a_busy_server_is_given_the_time_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Cancel, "wait", lambda self, seconds: waits.append(seconds))
    backoff = Backoff(RetryPolicy(patience_seconds=30, first_seconds=0.1))
    backoff.pause(BusyError("full", 7.0))
    backoff.pause(BusyError("full", 500.0))
    assert waits[0] == 7.0
    assert waits[1] <= 30  # not beyond the patience


def test_a_full_server_is_waited_for_longer_than_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cancel, "wait", lambda self, seconds: None)
    policy = RetryPolicy(patience_seconds=60, attempts=3, busy_seconds=60)
    call = Counted([BusyError("full", 0.0)] * 20)
    assert again(call, policy) == "done"
    with pytest.raises(BusyError, match="Given up after 2 tries"):
        again(Counted([BusyError("full", 0.0)] * 20), RetryPolicy(busy_seconds=1e-9))
    with pytest.raises(ServerUnreachableError, match="Given up after 3 tries"):
        again(Counted([ServerUnreachableError("gone")] * 20), policy)


def test_waits_grow_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Cancel, "wait", lambda self, seconds: waits.append(seconds))
    backoff = Backoff(RetryPolicy(first_seconds=0.1, longest_seconds=2.0))
    for _ in range(12):
        backoff.pause(ServerUnreachableError("gone"))
    assert 0.05 <= waits[0] <= 0.1
    assert all(wait <= 2.0 for wait in waits)
    assert min(waits[6:]) >= 1.0
