"""Telling every stage of a request that nobody waits for it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable


class RequestCancelledError(Exception):
    """The caller left, or the server ends: the work of this request stops. Not an error of anybody."""


class CancelToken:
    """Set once, by any thread; asked before each piece of work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        return self._reason is not None

    @property
    def reason(self) -> str:
        """Why, or an empty string while it is not cancelled."""
        return self._reason or ""

    def cancel(self, reason: str) -> None:
        """Sets it, and calls what was registered; later calls change nothing."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Calls `callback` when it is cancelled, at once if it already is."""
        with self._lock:
            if self._reason is None:
                self._callbacks.append(callback)
                return
        callback()

    def check(self) -> None:
        """Raises RequestCancelledError if it is set."""
        if self._reason is not None:
            raise RequestCancelledError(self._reason)
