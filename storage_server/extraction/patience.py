"""Trying again, with less at once, what memory was too short for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Generic, TypeVar

from hapi.cancel import CancelledWork
from hapi.errors import MemoryBudgetError
from hapi.model.pauses import undisturbed
from storage_server.memory.outofmemory import is_out_of_memory, make_room
from storage_server.memory.reserve import Reserve
from storage_server.metrics import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 7
"""Tries in all: one beside others, one at once after a release of memory, and five after a pause each."""
FIRST_PAUSE_SECONDS = 0.02
"""Before the third try; each further pause is twice as long: 0.02 + 0.04 + ... + 0.32, 0.62 s in all."""


class Patience:
    """Work that ran out of memory is done again: alone (of all that failed so), after a release of memory.

    The caller of a request sees nothing of it but time.
    """

    def __init__(
        self,
        device: str,
        metrics: Metrics,
        pause: Callable[[float], object] = time.sleep,
        reserve: Reserve | None = None,
    ) -> None:
        """`reserve` is given up for each further try, and nobody else is let in between the operations of one."""
        self._reserve = reserve
        self._device = device
        self._metrics = metrics
        self._pause = pause
        self._alone = threading.Lock()

    def __call__(
        self, what: str, work: Callable[[int], T], stage: str, is_wanted: Callable[[], bool] = lambda: True
    ) -> T:
        """What `work(attempt)` answers, attempt 0, 1, ...: a later one should take less memory where it can.

        MemoryBudgetError after the last attempt, CancelledWork if nobody wants it any longer.
        """
        tried = attempt(lambda: work(0))
        if tried.has_value:
            return tried.get()
        with self._alone:
            for number in range(1, ATTEMPTS):
                self._metrics.short_of_memory.labels(stage).inc()
                log.warning("%s: out of memory (%s), trying again", what, tried.said)
                if number > 1:
                    self._pause(FIRST_PAUSE_SECONDS * 2 ** (number - 2))
                if not is_wanted():
                    raise CancelledWork("nobody wants it any longer")
                make_room(self._device)
                with undisturbed(), self._reserve.given_up() if self._reserve is not None else nullcontext():
                    tried = attempt(lambda number=number: work(number))  # type: ignore[misc]
                if tried.has_value:
                    return tried.get()
        raise MemoryBudgetError(
            f"{what} ran out of memory {ATTEMPTS} times, alone and after waiting ({tried.said}). "
            "Give the server more memory, or less to do at once."
        )


class Tried(Generic[T]):
    """The value of an attempt, or what was said when memory ran out."""

    def __init__(self, values: tuple[T, ...], said: str = "") -> None:
        self._values = values
        self.said = said

    @property
    def has_value(self) -> bool:
        return bool(self._values)

    def get(self) -> T:
        """The value; only if there is one."""
        return self._values[0]


def attempt(work: Callable[[], T]) -> Tried[T]:
    """Tries it once; what is not a lack of memory is raised.

    Keeps no reference to the exception: its traceback would keep the failed pass's tensors alive through the next.
    """
    try:
        return Tried((work(),))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Tried((), str(error).partition("\n")[0][:200] or type(error).__name__)
