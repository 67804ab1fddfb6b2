"""Promises of memory."""

from __future__ import annotations

import pytest

from hapi.errors import InputError
from storage_server.memory.budget import MemoryBudget


def test_the_budget_is_the_least_of_setting_and_free_memory() -> None:
    assert MemoryBudget("cpu", 500, free=lambda device: 1000).total_bytes == 500
    assert MemoryBudget("cpu", 5000, free=lambda device: 1000).total_bytes == 900
    assert MemoryBudget("cpu", None, free=lambda device: 1000).total_bytes == 900


def test_no_memory_is_refused() -> None:
    with pytest.raises(InputError, match="no memory is free"):
        MemoryBudget("cpu", free=lambda device: 0)


def test_queues_count_only_where_they_lie() -> None:
    assert MemoryBudget("cpu", 1000, queue_bytes=100, free=lambda device: 10**6).room_bytes == 900
    assert MemoryBudget("cuda", 1000, queue_bytes=100, free=lambda device: 10**6).room_bytes == 1000


def test_queues_take_at_most_a_quarter() -> None:
    assert MemoryBudget("cpu", 1000, queue_bytes=900, free=lambda device: 10**6).queue_bytes == 250


def test_weights_are_promised_once_and_leave_less_for_batches() -> None:
    budget = MemoryBudget("cpu", 1000, free=lambda device: 10**6)
    assert budget.take_weights(600)
    assert not budget.take_weights(401)
    assert budget.batch_bytes() == 400
    budget.give_weights(600)
    assert budget.take_weights(1000)


def test_a_batch_never_takes_more_than_is_free_in_fact() -> None:
    free = 10**6
    budget = MemoryBudget("cpu", 1000, free=lambda device: free)
    free = 500
    assert budget.batch_bytes() == 450
