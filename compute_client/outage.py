"""Telling the user that a server went away, or is full for long, while everybody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hapi.backoff import RetryPolicy
from hapi.errors import BusyError, HapiError
from hapi.units import format_seconds

log = logging.getLogger(__name__)

FULL_SECONDS = 30.0
"""A full server is an everyday matter; only one that served nobody here for so long is worth a word."""


class Outage:
    """One server's absence: said once when it begins and once when it ends, whatever number of threads meet it.

    Warnings reach standard error also where nobody set up logging.
    """

    def __init__(self, url: str, patience: RetryPolicy, now: Callable[[], float] = time.monotonic) -> None:
        """`now` tells the time in seconds."""
        self._url, self._patience, self._now = url, patience, now
        self._since: float | None = None
        self._full_since: float | None = None
        self._told = False
        self._lock = threading.Lock()

    def met(self, error: HapiError) -> None:
        """A request failed for now, and will be tried again."""
        with self._lock:
            now = self._now()
            if isinstance(error, BusyError):
                self._full_since = now if self._full_since is None else self._full_since
                if now - self._full_since < FULL_SECONDS or self._told:
                    return
                self._since = self._full_since if self._since is None else self._since
            elif self._since is not None:
                return
            else:
                self._since = now
            self._told = True
        is_full = isinstance(error, BusyError)
        seconds = self._patience.busy_seconds if is_full else self._patience.patience_seconds
        log.warning("%s Trying again for up to %s.", error, format_seconds(seconds))

    def over(self) -> None:
        """Samples arrive."""
        if self._since is None and self._full_since is None:
            return
        with self._lock:
            since, self._since, self._full_since, self._told = self._since, None, None, False
        if since is not None:
            log.warning("%s answers again after %s.", self._url, format_seconds(self._now() - since))
