"""The one thread that runs torch work on a device: no other thread of the server computes there."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from hapi.cancel import Cancel, CancelledWork

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a task: its value or the exception that ended it."""

    value: T | None = None
    error: BaseException | None = None

    def get(self) -> T:
        """The value, or raises the exception."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # a task without an error has its value, None included


@dataclass(frozen=True)
class Task(Generic[T]):
    """One piece of torch work. `deliver` is called on the device's thread, exactly once, with the outcome."""

    run: Callable[[], T]
    deliver: Callable[[Outcome[T]], Any]
    cancel: Cancel


class DeviceExecutor:
    """Runs tasks one after the other, in the order in which they came; tasks of cancelled requests are not run.

    The queue needs no bound of its own: a request has at most two batches in it, and requests are counted at the door.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = device
        self._threads = threads
        self._tasks: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=f"hapi-{device}", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    @property
    def depth(self) -> int:
        """Tasks that wait."""
        return self._tasks.qsize()

    def submit(self, task: Task[Any]) -> None:
        """Puts the task at the end of the queue; after `close` it is delivered as cancelled."""
        with self._lock:
            if not self._closed:
                self._tasks.put(task)
                return
        task.deliver(Outcome(error=CancelledWork("the server has stopped")))

    def call(self, run: Callable[[], T], cancel: Cancel | None = None) -> T:
        """Runs one piece of work and waits for it; must not be called from the device's own thread."""
        outcomes: queue.SimpleQueue[Outcome[T]] = queue.SimpleQueue()
        self.submit(Task(run, outcomes.put, cancel or Cancel()))
        return outcomes.get().get()

    def close(self) -> None:
        """Ends the thread after the tasks that are there; those of cancelled requests are not run."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._tasks.put(None)
        self._thread.join()

    def _loop(self) -> None:
        _prepare(self.device, self._threads)
        while (task := self._tasks.get()) is not None:
            self._perform(task)
            del task  # nothing of a finished request stays alive while the thread waits

    def _perform(self, task: Task[Any]) -> None:
        outcome: Outcome[Any]
        try:
            task.cancel.check()
            outcome = Outcome(task.run())
        except BaseException as error:
            outcome = Outcome(error=error)
        try:
            task.deliver(outcome)
        except Exception:
            log.exception("a result could not be delivered")


def _prepare(device: str, threads: int | None) -> None:
    """Sets the thread up. float32 means float32: TF32, which convolutions on CUDA use unasked, is turned off."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
