"""Pauses in a long pass: between two operations of a program, its thread may do something short for somebody else.

A pass through a network cannot be hurried, but it can wait: its tensors stay where they are, and nothing that it
computes changes. What is done in a pause is up to whoever has the program run, see `pausing`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Look = Callable[[], bool]
"""Called between two operations, often: looks whether there is something to do, does it, and says whether it did."""


class _Here(threading.local):
    look: Look | None = None
    paused_seconds: float = 0.0
    paused_processor_seconds: float = 0.0


_here = _Here()


@contextmanager
def pausing(look: Look) -> Iterator[None]:
    """While the block runs, programs on this thread call `look` before each operation; not those that `look` runs."""
    before, _here.look = _here.look, look
    try:
        yield
    finally:
        _here.look = before


@contextmanager
def undisturbed() -> Iterator[None]:
    """No pauses while the block runs: what is measured there is its own."""
    before, _here.look = _here.look, None
    try:
        yield
    finally:
        _here.look = before


def pause_of_thread() -> Callable[[], object] | None:
    """What a program is to call before each operation; None: nothing."""
    return None if _here.look is None else _pause


def working_seconds() -> float:
    """A clock of this thread that stands still in its pauses (after them: in a pause it goes on)."""
    return time.perf_counter() - _here.paused_seconds


def processor_seconds() -> float:
    """The same of the thread's time on a processor: it stands still, too, while other threads have that."""
    return time.thread_time() - _here.paused_processor_seconds


def _pause() -> None:
    look = _here.look
    if look is None:
        return
    began, paused = time.perf_counter(), _here.paused_seconds
    worked, paused_worked = time.thread_time(), _here.paused_processor_seconds
    with undisturbed():
        if look():
            _here.paused_seconds = paused + time.perf_counter() - began
            _here.paused_processor_seconds = paused_worked + time.thread_time() - worked
