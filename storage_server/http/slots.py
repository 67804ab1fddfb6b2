"""A bound on how many of one kind of request happen at once; more are refused, not queued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from hapi.errors import BusyError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Slots:
    """Belongs to the event loop; not thread-safe."""

    def __init__(self, count: int, what: str) -> None:
        self._count = count
        self._what = what
        self._taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One slot for the block; BusyError if all are taken."""
        if self._taken >= self._count:
            raise BusyError(f"{self._taken} {self._what} are under way, the most at one time. Try again in a moment.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class SlottedStream(StreamingResponse):
    """An answer of `count` bytes that takes a slot while it is sent, from before its status: BusyError is an answer."""

    def __init__(self, slots: Slots, pieces: AsyncIterator[bytes], media_type: str, count: int) -> None:
        super().__init__(pieces, media_type=media_type, headers={"content-length": str(count)})
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slots.one():
            await super().__call__(scope, receive, send)
