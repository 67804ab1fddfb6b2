"""From an HTTP answer to the error that it stands for."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import httpx

from hapi.errors import (
    BusyError,
    ForbiddenError,
    HapiError,
    ServerUnreachableError,
    ServiceError,
    TooLargeError,
    UnauthorizedError,
    UnknownModelError,
    WireError,
    from_kind,
)

_PLAIN = {
    401: UnauthorizedError,
    403: ForbiddenError,
    413: TooLargeError,
    502: ServerUnreachableError,
    504: ServerUnreachableError,
}
"""For answers without a problem document: those of proxies, and all answers to HEAD."""

LONGEST_RETRY_AFTER_SECONDS = 60.0
MOST_DOCUMENT_BYTES = 64 * 2**20
"""Of an answer that is read whole: documents and errors. A manifest may be as large as it is."""


def read_whole(response: httpx.Response, url: str, most_bytes: int | None = MOST_DOCUMENT_BYTES) -> httpx.Response:
    """The same answer, all of it in memory; WireError as soon as it is larger than that (None: however large it is)."""
    data = bytearray()
    try:
        for part in response.iter_bytes():
            data += part
            if most_bytes is not None and len(data) > most_bytes:
                raise WireError(f"{url}: its answer is larger than {most_bytes} bytes. Is a HAPI storage server there?")
    except httpx.DecodingError as error:
        raise WireError(f"{url}: its answer cannot be read ({error}). Is a HAPI storage server there?") from error
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() != "content-encoding"]
    return httpx.Response(
        response.status_code,
        headers=headers,
        content=bytes(data),
        request=response.request,
        extensions=response.extensions,
    )


def check_answer(response: httpx.Response, url: str, expects: str | None = None) -> None:
    """Raises the error that an answer stands for, or WireError for one of another content type than `expects`."""
    if response.is_error or response.is_redirect:
        raise error_of(response, url)
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    if expects is not None and kind != expects:
        raise WireError(f"{url}: answered {kind or 'no content type'} instead of {expects}. Is a HAPI server there?")


def error_of(response: httpx.Response, url: str) -> HapiError:
    """The typed error of a failed answer: by its problem document, else by its status."""
    status = response.status_code
    try:
        document = response.json()
    except ValueError:
        document = None
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(kind, str) or not isinstance(document, dict):
        return _from_status(response, url)
    error = from_kind(kind, f"{url}: {document.get('detail') or document.get('title') or f'answered {status}'}")
    if isinstance(error, BusyError) or "retry-after" in response.headers:
        error.retry_after_seconds = _retry_after(response)
    return error


def _from_status(response: httpx.Response, url: str) -> HapiError:
    status = response.status_code
    said = f"{url}: answered {status} {response.reason_phrase}"
    if status in (429, 503):
        return BusyError(f"{said}: it is full or restarts. Try again later.", _retry_after(response))
    if status == 404 and response.request.method == "HEAD":
        return UnknownModelError(f"{said}: it does not hold this model.")
    if status in _PLAIN:
        return _PLAIN[status](f"{said}. Check the address and the token (HAPI_TOKEN).")
    return ServiceError(f"{said}. Is a HAPI storage server there?")


def _retry_after(response: httpx.Response) -> float:
    """Seconds of the header, within bounds; from now where it is a date; nonsense counts as one second."""
    said = response.headers.get("retry-after", "1")
    try:
        seconds = float(said)
    except ValueError:
        seconds = _seconds_until(said, response.headers.get("date"))
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS) if seconds == seconds else 1.0


def _seconds_until(said: str, date: str | None) -> float:
    """From the answer's own date, as clocks may differ; 1.0 if either is no date."""
    try:
        return (parsedate_to_datetime(said) - parsedate_to_datetime(date or "")).total_seconds()
    except (ValueError, TypeError):  # the latter: one of them without a time zone
        return 1.0
