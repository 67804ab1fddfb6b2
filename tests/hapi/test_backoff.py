"""Retries end: by number, by time since the last progress, and at once for what is final."""

from __future__ import annotations

from itertools import cycle

import pytest

from hapi.backoff import Backoff, RetryPolicy, again
from hapi.cancel import Cancel, CancelledWork
from hapi.errors import (
    BusyError,
    ForbiddenError,
    HapiError,
    ServerUnreachableError,
    StoreUnavailableError,
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


class Clock:
    """Time that passes only in pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.waits = 0.0, []
        monkeypatch.setattr(Cancel, "wait", lambda cancel, seconds: self.wait(seconds))

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds


def pause_for_ever(backoff: Backoff, *errors: HapiError) -> None:
    for error in cycle(errors):
        backoff.pause(error)


def test_a_server_is_given_the_time_it_asks_for_and_clients_do_not_return_in_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = [Backoff(RetryPolicy(busy_seconds=300)).delay(BusyError("full", 7.0)) for _ in range(100)]
    assert min(waits) >= 7.0
    assert max(waits) <= 10.5
    assert len(set(waits)) > 90
    assert Backoff(RetryPolicy(busy_seconds=30)).delay(BusyError("full", 500.0)) == 30  # not beyond the patience
    resting = StoreUnavailableError("the store rests.")
    resting.retry_after_seconds = 5.0
    assert 5.0 <= Backoff(RetryPolicy()).delay(resting) <= 7.5


def test_a_full_server_is_no_failure_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    backoff = Backoff(RetryPolicy(patience_seconds=3.0, attempts=2), now=clock)
    with pytest.raises(BusyError, match=r"Given up after \d+ tries in 3600 s"):
        pause_for_ever(backoff, BusyError("full", 1.0))
    assert clock.seconds == 3600.0
    assert len(clock.waits) < 3600


def test_an_answer_ends_an_absence_but_not_the_whole_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    backoff = Backoff(RetryPolicy(patience_seconds=10.0, busy_seconds=100.0, attempts=1000), now=clock)
    errors = [ServerUnreachableError("gone"), ServerUnreachableError("gone"), BusyError("full", 1.0)]
    with pytest.raises((ServerUnreachableError, BusyError), match="in 100 s"):
        pause_for_ever(backoff, *errors)
    gone = Backoff(RetryPolicy(patience_seconds=10.0, attempts=1000), now=clock)
    gone.pause(BusyError("full", 60.0))
    begun = clock.seconds
    with pytest.raises(ServerUnreachableError):
        pause_for_ever(gone, ServerUnreachableError("gone"))
    assert clock.seconds - begun == pytest.approx(10.0)


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
