"""A pool that is there from the beginning needs no further thread, whatever is asked of it."""

from __future__ import annotations

import threading

import pytest

from storage_server.http.threads import started_threads


def no_more(limit: int) -> object:
    """Thread.start that fails, as where no memory is left for a stack, after `limit` threads."""
    start, started = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        if started == limit:
            raise RuntimeError("can't start new thread")
        started += 1
        start(thread)

    return limited


def test_no_thread_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = started_threads(4, "test")
    monkeypatch.setattr(threading.Thread, "start", no_more(0))
    together = threading.Barrier(4)
    assert sorted(future.result(60) for future in [pool.submit(together.wait, 60) for _ in range(4)]) == [0, 1, 2, 3]
    assert [pool.submit(int).result(60) for _ in range(100)] == [0] * 100
    pool.shutdown()


def test_too_few_threads_are_said_at_once_and_those_that_started_end(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr(threading.Thread, "start", no_more(2))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        started_threads(4, "test")
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
