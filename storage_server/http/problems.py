"""From errors to HTTP: one table from `kind` to status, and problem+json bodies (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from hapi import errors
from hapi.errors import BusyError, HapiError, MemoryBudgetError
from hapi.wire.protocol import PROBLEM_JSON

STATUS: Mapping[type[HapiError], int] = {
    errors.HapiError: 500,
    errors.InputError: 422,
    errors.DigestMismatchError: 409,
    errors.StoreError: 502,
    errors.ObjectNotFoundError: 404,
    errors.AccessDeniedError: 403,
    errors.StoreUnavailableError: 503,
    errors.ServiceError: 500,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.UnknownModelError: 404,
    errors.UnknownDatasetError: 404,
    errors.BusyError: 429,
    errors.MemoryBudgetError: 507,
    errors.TooLargeError: 413,
}
"""Status of an error class and of those below it that are not listed themselves."""

TITLES = {
    400: "Bad request",
    401: "Not authorised",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Not what was named",
    413: "Too large",
    422: "Cannot be done as asked",
    429: "Busy",
    500: "Failed",
    502: "The object store failed",
    503: "Not available at the moment",
    507: "Does not fit",
}


class ProblemResponse(JSONResponse):
    """An error as application/problem+json."""

    media_type = PROBLEM_JSON


def status_of(error: HapiError) -> int:
    """The HTTP status of an error: of the nearest class above it in the table."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(
    kind: str, status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any
) -> JSONResponse:
    """A problem+json answer; `members` that are not None are added to it."""
    body = {"type": kind, "title": TITLES.get(status, "Failed"), "status": status, "detail": detail}
    body |= {name: value for name, value in members.items() if value is not None}
    return ProblemResponse(body, status, headers)


def from_error(error: HapiError, status: int | None = None) -> JSONResponse:
    """The answer to a request that ended with `error`."""
    status = status or status_of(error)
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    elif status == 503:
        headers["Retry-After"] = "5"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.kind, status, str(error), headers, **_numbers(error))


def _numbers(error: HapiError) -> dict[str, Any]:
    """What a caller may want to act on without reading the sentence."""
    if isinstance(error, MemoryBudgetError):
        names = ("needed_bytes", "available_bytes", "fits", "fits_bytes")
        return {name: getattr(error, name) for name in names}
    return {"retry_after_seconds": error.retry_after_seconds} if isinstance(error, BusyError) else {}


def sentence(faults: Iterable[Mapping[str, Any]], most: int = 3) -> str:
    """Pydantic's list of faults as one sentence that names the fields."""
    parts = []
    for fault in faults:
        if fault["type"] == "json_invalid":
            return f"the request's body is not JSON: {fault['ctx']['error']} at character {fault['loc'][-1]}."
        if tuple(fault["loc"]) == ("body",):
            if fault["type"] == "missing":
                return "the request has no body. Send a JSON object, with the header Content-Type: application/json."
            if isinstance(fault.get("input"), bytes):  # FastAPI reads nothing else as JSON
                return "the request's body is not said to be JSON. Send the header Content-Type: application/json."
        place = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
        said = str(fault["msg"]).removeprefix("Value error, ")
        parts.append(f"{'.'.join(place)}: {said}" if place else said)
    shown = "; ".join(parts[:most])
    return f"the request is not valid: {shown}{f'; and {len(parts) - most} more' if len(parts) > most else ''}."
