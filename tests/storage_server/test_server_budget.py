"""Promises of memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.errors import InputError
from storage_server.memory.budget import MemoryBudget


@dataclass
class Host:
    """A machine on which things happen: bytes free, held by the server, and freed but kept by its C library."""

    free: int
    held: int = 50
    kept: int = 0

    def budget(self, setting: int | None = None, queue_bytes: int = 0, device: str = "cpu") -> MemoryBudget:
        return MemoryBudget(
            device, setting, queue_bytes, lambda device: self.free, lambda device: self.held, lambda: self.kept
        )

    def take(self, count: int) -> None:
        """The server takes memory."""
        self.free -= count
        self.held += count


def test_the_budget_is_the_least_of_setting_and_free_memory() -> None:
    assert Host(1000).budget(500).total_bytes == 500
    assert Host(1000).budget(5000).total_bytes == 950
    assert Host(1000).budget().total_bytes == 950


def test_no_memory_is_refused() -> None:
    with pytest.raises(InputError, match="no memory is free"):
        Host(0).budget()


def test_queues_count_only_where_they_lie() -> None:
    assert Host(10**6).budget(1000, queue_bytes=100).room_bytes == 900
    assert Host(10**6).budget(1000, queue_bytes=100, device="cuda").room_bytes == 1000


def test_queues_take_at_most_an_eighth() -> None:
    assert Host(10**6).budget(1000, queue_bytes=900).queue_bytes == 125


def test_weights_are_promised_once_and_leave_less_for_batches() -> None:
    budget = Host(10**6).budget(1000)
    assert budget.take_weights(600)
    assert not budget.take_weights(401)
    assert budget.batch_bytes() == 400
    budget.give_weights(600)
    assert budget.take_weights(1000)


def test_the_budget_is_watched() -> None:
    host = Host(1000)
    budget = host.budget()
    host.take(300)
    assert budget.total_bytes == 950, "what the server itself took is still its own"
    assert budget.batch_bytes() == 650
    host.free -= 200
    assert budget.total_bytes == 750, "somebody else took it, or the limit was lowered"
    assert budget.batch_bytes() == 450
    host.free += 500
    assert budget.total_bytes == 1250


def test_mapped_weights_are_file_cache_that_is_not_free() -> None:
    host = Host(1000)
    budget = host.budget()
    assert budget.take_weights(400)
    assert budget.batch_bytes() == 550
    gpu = Host(1000).budget(device="cuda")
    assert gpu.take_weights(400)
    assert gpu.batch_bytes() == 550


def test_memory_that_was_freed_but_kept_is_the_next_batch_s() -> None:
    host = Host(1000)
    budget = host.budget()
    host.take(700)
    assert budget.batch_bytes() == 250
    host.kept = 600
    assert budget.batch_bytes() == 850


def test_kept_memory_is_released_only_when_the_kernel_runs_short() -> None:
    host = Host(1000)
    budget = host.budget()
    assert not budget.is_short()
    host.take(980)
    assert not budget.is_short(), "nothing is kept that could be given back"
    host.kept = 500
    assert budget.is_short()


@given(
    st.integers(1000, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.sampled_from(["take", "other", "weights"]), st.integers(0, 10**5)), max_size=20),
)
def test_a_batch_never_takes_more_than_is_there(
    free: int, setting: int, queue_bytes: int, steps: list[tuple[str, int]]
) -> None:
    host = Host(free)
    budget = host.budget(setting or None, queue_bytes)
    for what, count in steps:
        if what == "take":
            host.take(min(count, host.free))
        elif what == "other":
            host.free -= min(count, host.free)
        else:
            budget.take_weights(count)
        batch = budget.batch_bytes()
        assert 0 <= batch <= max(0, host.free - budget.weight_bytes)
        assert batch + budget.weight_bytes + budget.queue_bytes <= max(
            setting or free, budget.weight_bytes + budget.queue_bytes
        )
