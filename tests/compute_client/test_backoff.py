"""Retries end: by number, by time since the last progress, and at once for what is final."""

from __future__ import annotations

import httpx
import pytest

from compute_client.answers import error_of
from compute_client.backoff import Backoff, RetryPolicy, again
from compute_client.cancel import Cancel, CancelledWork
from hapi.errors import (
    BusyError,
    ForbiddenError,
    ServerUnreachableError,
    ServiceError,
    UnauthorizedError,
    UnknownModelError,
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


def test_waits_grow_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Cancel, "wait", lambda self, seconds: waits.append(seconds))
    backoff = Backoff(RetryPolicy(first_seconds=0.1, longest_seconds=2.0))
    for _ in range(12):
        backoff.pause(ServerUnreachableError("gone"))
    assert 0.05 <= waits[0] <= 0.1
    assert all(wait <= 2.0 for wait in waits)
    assert min(waits[6:]) >= 1.0


@pytest.mark.parametrize(
    ("status", "method", "error"),
    [
        (401, "GET", UnauthorizedError),
        (403, "POST", ForbiddenError),
        (404, "HEAD", UnknownModelError),
        (404, "GET", ServiceError),
        (429, "POST", BusyError),
        (502, "POST", ServerUnreachableError),
        (503, "POST", BusyError),
        (500, "POST", ServiceError),
    ],
)
def test_answers_without_a_problem_document_have_a_meaning(status: int, method: str, error: type[Exception]) -> None:
    response = httpx.Response(status, request=httpx.Request(method, "http://s/v1/x"), text="<html>")
    assert type(error_of(response, "http://s")) is error


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("99999", 60.0), ("-4", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), ("nan", 1.0)],
)
def test_retry_after_is_read_within_bounds(header: str, seconds: float) -> None:
    response = httpx.Response(429, request=httpx.Request("GET", "http://s"), headers={"retry-after": header})
    error = error_of(response, "http://s")
    assert isinstance(error, BusyError)
    assert error.retry_after_seconds == seconds
