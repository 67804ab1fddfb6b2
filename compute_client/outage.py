"""Telling the user that a server went away, while everybody waits for it."""

from __future__ import annotations

import logging
import threading
import time

from hapi.errors import BusyError, HapiError
from hapi.units import format_seconds

log = logging.getLogger(__name__)


class Outage:
    """One server's absence: said once when it begins and once when it ends, whatever number of threads meet it.

    A server that is only full is no outage. Warnings reach standard error also where nobody set up logging.
    """

    def __init__(self, url: str, patience_seconds: float) -> None:
        self._url, self._patience_seconds = url, patience_seconds
        self._since: float | None = None
        self._lock = threading.Lock()

    def met(self, error: HapiError) -> None:
        """A request failed for now, and will be tried again."""
        if isinstance(error, BusyError):
            return
        with self._lock:
            if self._since is not None:
                return
            self._since = time.monotonic()
        log.warning("%s Trying again for up to %s.", error, format_seconds(self._patience_seconds))

    def over(self) -> None:
        """Samples arrive."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            log.warning("%s answers again after %s.", self._url, format_seconds(time.monotonic() - since))
