"""Answers of servers and of proxies before them stand for typed errors."""

from __future__ import annotations

import httpx
import pytest

from hapi.errors import (
    BusyError,
    ForbiddenError,
    ServerUnreachableError,
    ServiceError,
    UnauthorizedError,
    UnknownModelError,
)
from profiler.remote.answers import error_of


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
