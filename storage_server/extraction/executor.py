"""The one thread that runs torch work on a device: no other thread of the server computes there."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from hapi.cancel import Cancel, CancelledWork
from hapi.engine import exact_sums
from hapi.model.pauses import pausing
from storage_server.extraction.engine import Prefix
from storage_server.extraction.guests import Guests, Visit
from storage_server.extraction.lanes import Lanes
from storage_server.extraction.rows import Batch, Call, Row
from storage_server.extraction.sizing import Decision
from storage_server.scheduling.fair import SERVER, Flow

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a call: its value or the exception that ended it."""

    value: T | None = None
    error: BaseException | None = None

    def get(self) -> T:
        """The value, or raises the exception."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # a call without an error has its value, None included


class DeviceExecutor:
    """Runs batches and calls, one after the other, as the lanes order them. Thread-safe.

    The lanes need no bound of their own: requests bound what they have on its way.
    """

    def __init__(
        self,
        lanes: Lanes,
        compute: Callable[[Batch], Any],
        device: str = "cpu",
        threads: int | None = None,
        on_spent: Callable[[dict[Flow, float]], Any] = dict,
        guests: Guests | None = None,
    ) -> None:
        """`compute` runs a batch and sees to it that every row of it is delivered; `on_spent` learns of its seconds.

        Without `guests`, and on a GPU, where operations are ordered long before they run, no batch pauses for another.
        Raises what setting up the thread raised, as for a device that is not there.
        """
        self.device = device
        self._lanes = lanes
        self._compute = compute
        self._on_spent = on_spent
        self._guests = guests if device == "cpu" else None
        self._has_news = False
        self._left: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._closed = False
        prepared: queue.SimpleQueue[Outcome[None]] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._loop, args=(threads, prepared.put), name=f"hapi-{device}", daemon=True
        )
        self._thread.start()
        outcome = prepared.get()
        if outcome.error is not None:
            self._thread.join()
        outcome.get()

    @property
    def depth(self) -> int:
        """Rows and calls that wait."""
        with self._changed:
            return sum(self._lanes.waiting.values()) + self._lanes.calls

    def waiting(self) -> dict[tuple[str, ...], int]:
        """Rows that wait, by prefix."""
        with self._changed:
            return dict(self._lanes.waiting)

    def decision(self, prefix: Prefix) -> Decision:
        """The present batch size for a prefix."""
        with self._changed:
            return self._lanes.decision(prefix)

    def requests_changed(self) -> None:
        """Requests came or went."""
        with self._changed:
            self._lanes.decide_anew()
            self._wake()

    def expect(self, prefix: Prefix, count: int = 1) -> None:
        """Rows are on their way; negative: they are not, after all."""
        with self._changed:
            self._lanes.expect(prefix, count)
            self._wake()

    def submit(self, *rows: Row) -> None:
        """Expected rows are here."""
        with self._changed:
            for row in rows:
                self._lanes.add(row)
                self._lanes.expect(row.prefix, -1)
            self._wake()

    def share(self, row: Row, flow: Flow) -> None:
        """Somebody else waits for the row, too."""
        with self._changed:
            self._lanes.share(row, flow)

    def unshare(self, row: Row, flow: Flow) -> None:
        """Nobody of `flow` waits for the row any longer."""
        with self._changed:
            self._lanes.unshare(row, flow)
            self._changed.notify_all()

    @contextmanager
    def asking(self, flow: Flow) -> Iterator[Callable[[], object]]:
        """A request that waits to be let in; to be called when it is: what others got until then `flow` is owed."""
        with self._changed:
            self._lanes.ask(flow)
        with ExitStack() as waits:
            waits.callback(self._let_in_request, flow)
            yield waits.close

    def _let_in_request(self, flow: Flow) -> None:
        with self._changed:
            self._lanes.let_in(flow)

    def call(self, run: Callable[[], T], cancel: Cancel | None = None, flow: Flow = SERVER) -> T:
        """Runs one piece of work and waits for it; must not be called from the device's own thread.

        CancelledWork if `cancel` was set before it began, or if the executor is closed.
        """
        outcomes: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()
        with self._changed:
            if self._closed:
                raise CancelledWork("the server has stopped")
            self._lanes.add_call(Call(flow, partial(_perform, run, cancel or Cancel(), outcomes.put)))
            self._changed.notify_all()
        return outcomes.get().get()

    def close(self) -> None:
        """Ends the thread after the calls that are there; those of cancelled requests are not run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _loop(self, threads: int | None, told: Callable[[Outcome[None]], object]) -> None:
        try:
            _prepare(self.device, threads)
        except Exception as error:
            told(Outcome(error=error))
            return
        told(Outcome(None))
        while self._one():
            pass

    def _one(self) -> bool:
        """Does one thing; a frame of its own keeps nothing of a finished request alive while the thread waits."""
        with self._changed:
            work, due = self._next()
            while work is None:
                if self._closed and not self._lanes.calls:
                    return False
                self._changed.wait(None if due is None else max(0.0, due - self._lanes.clock()))
                work, due = self._next()
        started = self._lanes.clock()
        guest_seconds = 0.0
        try:
            if isinstance(work, Batch):
                guest_seconds = self._run(work)
            else:
                work.run()
        except Exception:
            log.exception("work on the device failed")
        seconds = self._lanes.clock() - started - guest_seconds
        if isinstance(work, Batch):
            self._settle(work, seconds)
        else:
            with self._changed:
                self._lanes.settle_call(work, seconds)
            self._on_spent({work.flow: seconds})
        return True

    def _run(self, batch: Batch) -> float:
        """Computes a batch, and small ones between its operations; answers with the seconds of these."""
        visit = Visit(batch, self._guests) if self._guests is not None else None
        if visit is None or not visit.may_take:
            self._compute(batch)
            return 0.0
        self._has_news = True
        try:
            with pausing(partial(self._let_in, visit)):
                self._compute(batch)
        finally:
            self._left.extend(visit.left)
        return visit.seconds

    def _let_in(self, visit: Visit) -> bool:
        """Runs the small batches whose turn it is; says whether there was one. Asked before each operation."""
        is_any = False
        while self._has_news:  # looked at without the lock: what is missed now is seen at the next operation
            guest = self._next_small(visit)
            if guest is not None:
                is_any = self._has_news = True
                seconds = visit.run(guest, self._lanes.clock)
                if seconds is not None:
                    self._settle(guest, seconds)
        return is_any

    def _next_small(self, visit: Visit) -> Batch | None:
        """The batch that is next, if it may be a guest. A policy that fails costs the guest, not the host."""
        with self._changed:
            self._has_news = False
            try:
                return self._lanes.next_small(visit.may_take, visit.fits)
            except Exception:
                log.exception("the next batch could not be decided")
                return None

    def _settle(self, batch: Batch, seconds: float) -> None:
        with self._changed:
            spent = self._lanes.settle(batch, seconds)
        self._on_spent(spent)

    def _wake(self) -> None:
        """Something may be ripe."""
        self._has_news = True
        self._changed.notify_all()

    def _next(self) -> tuple[Batch | Call | None, float | None]:
        """What is next; if nothing is, when to ask again at the latest, by the clock.

        A policy that fails does not stop the device for all: it is asked again in a while.
        """
        if self._left:
            return self._left.popleft(), None
        try:
            work = self._lanes.next()
            return work, None if work is not None else self._lanes.due()
        except Exception:
            log.exception("the next batch could not be decided")
            return None, self._lanes.clock() + RETRY_SECONDS


def _perform(run: Callable[[], T], cancel: Cancel, deliver: Callable[[Outcome[T]], Any]) -> None:
    try:
        cancel.check()
        deliver(Outcome(run()))
    except BaseException as error:
        deliver(Outcome(error=error))


def _prepare(device: str, threads: int | None) -> None:
    """Sets the thread up. Beside a GPU it has little to compute, and all processors are wanted for decoding."""
    if threads is not None or device != "cpu":
        torch.set_num_threads(threads or 1)
    if device != "cpu":
        torch.cuda.set_device(device)
        exact_sums()
