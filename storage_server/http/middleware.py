"""Pure ASGI middleware: JSON bodies are bounded before anything parses them, and answers are counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers

from hapi.errors import BusyError, HapiError, TooLargeError
from hapi.units import format_bytes
from storage_server.access.auth import TokenTable
from storage_server.http.problems import from_error
from storage_server.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


STALL_SECONDS = 60.0
"""After so long without a byte of a body that is still to come, its request is answered: it would wait for ever."""


class BodyLimit:
    """Reads the body of every POST, up to a limit, and hands it on whole; a longer one is answered with 413.

    Whose request it is is asked first: what strangers send is not kept. Uploads (PUT) are streamed, with a limit of
    their own. Neither waits for ever for a caller that stops in the middle.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, tokens: TokenTable) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self._app(scope, receive, send)
            return
        patient = _unstalled(receive)
        if scope["method"] == "PUT":
            await self._app(scope, patient, send)
            return
        try:
            body = await self._body(Headers(scope=scope), patient)
        except HapiError as error:
            await from_error(error)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body, None if the caller left; UnauthorizedError, TooLargeError, BusyError."""
        scheme, token = get_authorization_scheme_param(headers.get("authorization"))
        self._tokens.tenant(token if scheme.lower() == "bearer" else None)
        declared = headers.get("content-length", "")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            self._check_size(len(body))
            more = message.get("more_body", False)
        return bytes(body)

    def _check_size(self, count: int) -> None:
        if count > self._max_bytes:
            raise TooLargeError(
                f"the request has more than {format_bytes(self._max_bytes)}, the most that is read. "
                "Ask for fewer samples."
            )


class RequestCounter:
    """Counts answers by route (its template, so that labels stay few) and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "none"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()


def _unstalled(receive: Receive) -> Receive:
    """The same while the body comes; BusyError (the caller may send it again) if nothing comes for too long."""
    more = True

    async def next_message() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await receive()
        except TimeoutError:
            raise BusyError(f"nothing came of the request's body for {STALL_SECONDS:g} s. Send it again.") from None
        more = message.get("more_body", False)
        return message

    return next_message


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then what really comes: a disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
