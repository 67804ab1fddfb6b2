"""Answers that are streamed: a blocking iterator of bytes, driven from a thread, as a pure ASGI response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.responses import Response

from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BusyError, HapiError
from storage_server.metrics import Metrics
from storage_server.scheduling.admission import Admission
from storage_server.scheduling.fair import Flow

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)


class AnswerStream(Response):
    """Waits for a turn, then sends what `begin(cancel)` yields.

    The status is sent only once the first piece is there, so that everything that is wrong with a request, up to its
    first batch, is an ordinary error answer. What goes wrong later ends the connection without the stream's end
    marker: the caller sees that it is incomplete, and is told why when it asks again for what is missing. A caller
    that leaves, at any time, sets the cancel.
    """

    def __init__(
        self,
        begin: Callable[[Cancel], Generator[bytes, None, None]],
        threads: Executor,
        admission: Admission,
        metrics: Metrics,
        media_type: str,
        flow: Flow,
        seconds: float,
    ) -> None:
        """`flow` is whose request it is, `seconds` what is predicted for it."""
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._begin = begin
        self._threads = threads
        self._admission = admission
        self._metrics = metrics
        self._flow = flow
        self._seconds = seconds
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        outcome = "ok"
        try:
            async with watched(receive) as cancel, self._admission.turn(cancel, self._flow, self._seconds):
                await self._stream(cancel, send)
        except CancelledWork as error:
            outcome = "cancelled"
            log.info("extract ended early: %s", error)
            if self._admission.draining and not self._started:
                raise BusyError("this server is about to stop. Ask another one.", 5.0) from None
        except Exception as error:
            outcome = error.kind if isinstance(error, HapiError) else "failed"
            if not self._started:
                raise
            # the connection is closed without a proper end; a log line is all that is left to say
            log.error("extract failed half-way: %s", error, exc_info=None if isinstance(error, HapiError) else error)
        finally:
            self._metrics.extracts.labels(outcome).inc()
            self._metrics.request_seconds.observe(time.monotonic() - began)

    async def _stream(self, cancel: Cancel, send: Send) -> None:
        own = Cancel()  # the work ends with it; `cancel` is set only where nobody is to get the rest
        with cancel.calling(lambda: own.set(cancel.reason)):
            await self._send_pieces(self._begin(own), own, cancel, send)

    async def _send_pieces(self, pieces: Generator[bytes, None, None], own: Cancel, cancel: Cancel, send: Send) -> None:
        loop = asyncio.get_running_loop()
        running: asyncio.Future[bytes | None] | None = None
        try:
            while True:
                running = loop.run_in_executor(self._threads, _next, pieces)
                piece = await asyncio.shield(running)
                if not self._started:
                    start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                    await _sent(cancel, send, start)
                    self._started = True
                body = {"type": "http.response.body", "body": piece or b"", "more_body": piece is not None}
                await _sent(cancel, send, body)
                if piece is None:
                    return
        finally:
            own.set("the answer has ended")
            if running is not None:
                await asyncio.wait([running])
            await loop.run_in_executor(self._threads, pieces.close)


@asynccontextmanager
async def watched(receive: Receive) -> AsyncIterator[Cancel]:
    """A cancel that is set when the caller goes away, or else at the end of the block."""
    cancel = Cancel()
    watcher = asyncio.create_task(_watch(receive, cancel))
    try:
        yield cancel
    finally:
        watcher.cancel()
        cancel.set("the answer has ended")


async def _watch(receive: Receive, cancel: Cancel) -> None:
    """Sets the cancel when the caller goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel.set("the caller left")


async def _sent(cancel: Cancel, send: Send, message: Message) -> None:
    """Sends; CancelledWork if the cancel is set while a caller that does not read keeps it waiting."""
    loop = asyncio.get_running_loop()
    is_sending = True

    def give_up() -> None:
        if is_sending:
            patience.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as patience:
            try:
                with cancel.calling(lambda: loop.call_soon_threadsafe(give_up)):
                    await send(message)
            finally:
                is_sending = False
    except TimeoutError:
        cancel.check()
        raise


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
