"""Waiting for room in order: who has waited long goes first, and nobody new is let in before.

While nobody has waited long, whoever finds room takes it. Otherwise models that others keep busy by asking again and
again, each before the last has finished, would never be idle, and would never make room for the one who waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

from hapi.cancel import Cancel
from hapi.errors import BusyError

OVERDUE_SECONDS = 3.0
"""After so long others wait behind it."""
LONGEST_SECONDS = 30.0
"""After so long the caller is told to come back later."""


class _Ticket:
    def __init__(self, kind: str, since: float) -> None:
        self.kind = kind
        self.since = since


class Turns:
    """Callers in the order in which they came, each for something of a `kind`. Thread-safe.

    `changed` is the lock under which rooms change hands; it is to be notified when one may have become free.
    """

    def __init__(self, changed: threading.Condition, clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = changed
        self._clock = clock
        self._waiting: list[_Ticket] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait(self, kind: str, take: Callable[[], bool], refusal: str, cancel: Cancel | None = None) -> None:
        """Returns once `take` answered True; it is asked under the lock, in turn, whenever something changed.

        BusyError with the refusal after LONGEST_SECONDS, CancelledWork if the caller no longer wants it.
        """
        ticket = _Ticket(kind, self._clock())
        with cancel.calling(self._wake) if cancel else nullcontext(), self._changed:
            self._waiting.append(ticket)
            try:
                while not (self._may(ticket) and take()):
                    left = ticket.since + LONGEST_SECONDS - self._clock()
                    if left <= 0:
                        raise BusyError(refusal, retry_after_seconds=10.0)
                    self._changed.wait(min(left, OVERDUE_SECONDS))
                    if cancel is not None:
                        cancel.check()
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()  # those behind it may be next

    def _may(self, ticket: _Ticket) -> bool:
        """Whether nobody who came before waits, for another kind, for too long already. Under the lock."""
        overdue = self._clock() - OVERDUE_SECONDS
        for other in self._waiting:
            if other is ticket:
                return True
            if other.kind != ticket.kind and other.since <= overdue:
                return False
        return True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
