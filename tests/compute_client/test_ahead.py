"""The next batch is read on another thread, once, and only where it is not in memory and reading has to wait."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from compute_client.ahead import LEAST_WAIT_SECONDS, NAME, ReadAhead


class Cache:
    """Of which the samples from 10 on lie on disk."""

    def __init__(self) -> None:
        self.read: list[tuple[list[int], str]] = []
        self.is_slow = True
        self.waited = 0.0

    def is_on_disk(self, indices: list[int], view: int) -> bool:
        return max(indices) >= 10

    def gather(self, indices: list[int], view: int) -> Any:
        self.read.append((indices, threading.current_thread().name.rpartition("_")[0]))
        self.waited += LEAST_WAIT_SECONDS if self.is_slow and max(indices) >= 10 else 0.0
        if 99 in indices:
            raise OSError("the disk is gone")
        return np.arange(len(indices)), (torch.tensor(indices) + view,), torch.zeros(len(indices))


@pytest.fixture
def cache() -> Cache:
    return Cache()


def ahead_of(cache: Cache, view: int = 0) -> ReadAhead:
    """After a first batch that was read when it was wanted."""
    ahead = ReadAhead(cache, view, lambda: cache.waited)  # type: ignore[arg-type]
    ahead.begin([98])
    ahead.gather([98])
    assert cache.read.pop() == ([98], "")
    return ahead


def threads() -> int:
    return sum(thread.name.startswith(NAME) for thread in threading.enumerate())


def test_what_was_begun_is_answered(cache: Cache) -> None:
    ahead = ahead_of(cache, 100)
    for first in (10, 20, 30):
        ahead.begin([first, first + 1])
        ahead.begin([90])  # one batch at a time
        _, (features,), _ = ahead.gather([first, first + 1])
        assert features.tolist() == [first + 100, first + 101]
    assert cache.read == [([first, first + 1], NAME) for first in (10, 20, 30)]
    assert threads() == 1
    ahead.close()
    assert threads() == 0


def test_what_is_in_memory_needs_no_thread(cache: Cache) -> None:
    ahead = ahead_of(cache)
    ahead.begin([1, 2])
    ahead.gather([1, 2])
    assert cache.read == [([1, 2], "")]
    assert threads() == 0
    ahead.close()


def test_what_comes_at_once_is_read_when_it_is_wanted(cache: Cache) -> None:
    ahead = ahead_of(cache)
    cache.is_slow = False
    for first in (10, 20, 30):
        ahead.begin([first])
        ahead.gather([first])
    assert cache.read == [([10], NAME), ([20], ""), ([30], "")]
    cache.is_slow = True
    ahead.gather([40])
    ahead.begin([50])
    ahead.gather([50])
    assert cache.read[-1] == ([50], NAME)
    ahead.close()


def test_other_samples_than_were_begun_are_read_at_once(cache: Cache) -> None:
    ahead = ahead_of(cache)
    ahead.begin([10])
    _, (features,), _ = ahead.gather([11, 12])
    assert features.tolist() == [11, 12]
    ahead.close()


def test_what_goes_wrong_there_is_raised_here(cache: Cache) -> None:
    ahead = ahead_of(cache)
    ahead.begin([99])
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.gather([99])
    ahead.close()
