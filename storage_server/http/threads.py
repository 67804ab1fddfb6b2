"""Threads for what blocks, all of them started at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait


def started_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose `count` threads are there from the beginning; RuntimeError if the system does not give as many.

    By itself a pool starts a thread whenever none is idle, and one that has just delivered its result is not idle yet:
    even calls one after the other start a second thread. Where memory is short the stack of a thread cannot be had,
    and an answer that is half sent would end there.
    """
    pool = ThreadPoolExecutor(count, name)
    together = threading.Barrier(count)
    try:
        wait([pool.submit(together.wait) for _ in range(count)])
    except RuntimeError:
        together.abort()  # those that did start must not wait for ever
        pool.shutdown(cancel_futures=True)
        raise
    return pool
