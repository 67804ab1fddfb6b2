"""Pure ASGI middleware: JSON bodies are bounded before anything parses them, and answers are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hapi.errors import TooLargeError
from hapi.units import format_bytes
from storage_server.http.problems import from_error
from storage_server.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Reads the body of every POST, up to a limit, and hands it on whole; a longer one is answered with 413.

    Uploads (PUT) are not touched: they are streamed, with a limit of their own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = self._declared(scope) <= self._max_bytes
        too_large = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self._max_bytes
            more = message.get("more_body", False) and not too_large
        if too_large:
            error = TooLargeError(
                f"the request has more than {format_bytes(self._max_bytes)}, the most that is read. "
                "Ask for fewer samples."
            )
            await from_error(error)(scope, receive, send)
            return
        await self._app(scope, _replayed(bytes(body), receive), send)

    @staticmethod
    def _declared(scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value)
        return 0


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


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then what really comes: a disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
