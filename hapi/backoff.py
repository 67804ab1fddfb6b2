"""Trying again: waits that grow, bounded in number and in time, and counted from the last progress.

A server that does not answer is given some minutes. One that answers that it is full is alive and works off what others
asked for: however long that takes, it is no failure, so it has a patience of its own that is far longer, and an answer
from it ends an absence.
"""

from __future__ import annotations

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


BUSY_SECONDS = 3600.0
"""How long a server may go on saying that it is full without serving one sample, before its error is raised."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on after a failure without any progress.

    Waits double from `first_seconds` to `longest_seconds`, each shortened at random by up to half, so that many clients
    of a restarted server do not return in step. A server's Retry-After counts as a least wait, and is lengthened at
    random by up to half, for the same reason.
    """

    patience_seconds: float = 120.0
    """With a server or store that is away, counted from its last answer."""
    attempts: int = 100
    """Tries in that time."""
    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    busy_seconds: float = BUSY_SECONDS
    """With a server that says that it is full, for any number of tries, counted from the last progress."""


QUICK = RetryPolicy(patience_seconds=3.0, attempts=5)
"""For the first contact: an address with a typo should be reported at once, but a server that is full is there."""


class Backoff:
    """The tries of one piece of work."""

    def __init__(
        self, policy: RetryPolicy, cancel: Cancel | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`now` tells the time in seconds."""
        self._policy, self._cancel, self._now = policy, cancel or Cancel(), now
        self.progress()

    def progress(self) -> None:
        """Something new arrived: patience begins anew."""
        self._tries = 0
        self._absent = 0  # tries since the last answer
        self._since: float | None = None
        self._absent_since: float | None = None

    def delay(self, error: HapiError) -> float:
        """Seconds to wait before the next try; raises `error` itself when it is final or patience is over."""
        if not isinstance(error, TRANSIENT):
            raise error
        now = self._now()
        self._tries += 1
        self._since = now if self._since is None else self._since
        left = self._left(error, now)
        if left <= 0 or self._absent >= self._policy.attempts:
            if self._tries > 1:
                raise type(error)(f"{error} Given up after {self._tries} tries in {now - self._since:.0f} s.")
            raise error
        wait = min(self._policy.first_seconds * 2.0 ** min(self._tries - 1, 30), self._policy.longest_seconds)
        asked = error.retry_after_seconds * random.uniform(1.0, 1.5)
        return min(max(wait * random.uniform(0.5, 1.0), asked), left)

    def pause(self, error: HapiError) -> None:
        """Waits before the next try; raises as `delay` does, and CancelledWork."""
        self._cancel.wait(self.delay(error))

    def _left(self, error: HapiError, now: float) -> float:
        """Seconds of patience with this error."""
        policy, since = self._policy, now if self._since is None else self._since
        if isinstance(error, BusyError):  # somebody is there
            self._absent, self._absent_since = 0, None
            return policy.busy_seconds - (now - since)
        self._absent += 1
        self._absent_since = now if self._absent_since is None else self._absent_since
        whole = max(policy.busy_seconds, policy.patience_seconds)  # also when it is now full, now away
        return min(policy.patience_seconds - (now - self._absent_since), whole - (now - since))


def again(call: Callable[[], Result], policy: RetryPolicy) -> Result:
    """What `call` gives, tried again after passing troubles; its last error when patience is over."""
    backoff = Backoff(policy)
    while True:
        try:
            return call()
        except TRANSIENT as error:
            backoff.pause(error)
