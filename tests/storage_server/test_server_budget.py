"""Promises of memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.errors import InputError
from storage_server.memory.budget import MemoryBudget, QueueBudget


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


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=60))
def test_queues_stay_within_their_bytes_but_for_one_sample_each(steps: list[tuple[int, int]]) -> None:
    queue = QueueBudget(1000)
    held = [0, 0, 0, 0]
    largest = 0
    for _ in held:
        queue.join()
    for request, count in steps:
        had = held[request]
        if queue.take(count, had):
            held[request] += count
            largest = max(largest, count)
            assert had == 0 or held[request] <= 250
        else:
            assert had, "a request that holds nothing is never refused"
            queue.give(had)
            held[request] = 0
        assert queue.used_bytes == sum(held) <= 1000 + 4 * largest
    for had in held:
        queue.leave(had)
    assert queue.used_bytes == 0
    assert queue.share_bytes == 1000
