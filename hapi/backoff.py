"""Trying again: waits that grow, bounded in number and in time, and counted from the last progress."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hapi.cancel import Cancel
from hapi.errors import (
    BusyError,
    HapiError,
    ServerUnreachableError,
    StoreUnavailableError,
    TruncatedStreamError,
)

Result = TypeVar("Result")

TRANSIENT = (ServerUnreachableError, TruncatedStreamError, BusyError, StoreUnavailableError)
"""Failures that another try may not meet: a network, a server that is full or restarts, a store that rests."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on after a failure without any progress.

    Waits double from `first_seconds` to `longest_seconds`, each shortened at random by up to half, so that many clients
    of a restarted server do not return in step. A server's Retry-After counts as a least wait.
    """

    patience_seconds: float = 120.0
    attempts: int = 100
    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    busy_seconds: float | None = None
    """Patience with a server that says that it is full, for any number of tries; None: as with any other failure."""

    def patience(self, error: HapiError) -> tuple[float, float]:
        """Seconds and tries after which `error` is the last word."""
        if isinstance(error, BusyError) and self.busy_seconds is not None:
            return self.busy_seconds, math.inf
        return self.patience_seconds, self.attempts


QUICK = RetryPolicy(patience_seconds=3.0, attempts=5, busy_seconds=120.0)
"""For the first contact: an address with a typo should be reported at once, but a server that is full is there."""


class Backoff:
    """The tries of one piece of work."""

    def __init__(self, policy: RetryPolicy, cancel: Cancel | None = None) -> None:
        self._policy, self._cancel = policy, cancel or Cancel()
        self._failures = 0
        self._since: float | None = None

    def progress(self) -> None:
        """Something new arrived: patience begins anew."""
        self._failures = 0
        self._since = None

    def pause(self, error: HapiError) -> None:
        """Waits before the next try; raises `error` itself when it is final or patience is over."""
        now = time.monotonic()
        self._failures += 1
        self._since = now if self._since is None else self._since
        seconds, attempts = self._policy.patience(error)
        left = seconds - (now - self._since)
        if not isinstance(error, TRANSIENT) or self._failures >= attempts or left <= 0:
            if isinstance(error, TRANSIENT) and self._failures > 1:
                raise type(error)(f"{error} Given up after {self._failures} tries in {now - self._since:.0f} s.")
            raise error
        wait = min(self._policy.first_seconds * 2.0 ** min(self._failures - 1, 30), self._policy.longest_seconds)
        wait *= random.uniform(0.5, 1.0)
        if isinstance(error, BusyError):
            wait = max(wait, error.retry_after_seconds)
        self._cancel.wait(min(wait, left))


def again(call: Callable[[], Result], policy: RetryPolicy) -> Result:
    """What `call` gives, tried again after passing troubles; its last error when patience is over."""
    backoff = Backoff(policy)
    while True:
        try:
            return call()
        except TRANSIENT as error:
            backoff.pause(error)
