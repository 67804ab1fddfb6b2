"""Room for a batch of one: kept back, given up for a further try, and had again afterwards."""

from __future__ import annotations

import errno

import pytest

from hapi.model.pauses import pause_of_thread, pausing
from storage_server.extraction.patience import Patience
from storage_server.memory.reserve import KNOWN, ROUNDING_BYTES, SPARE_BYTES, Reserve
from storage_server.memory.shortage import CALM_SECONDS, Shortage
from storage_server.metrics import Metrics

MIB = 2**20


class Memory:
    """So many bytes in all."""

    def __init__(self, count: int = 10**9) -> None:
        self.free = count

    def take(self, count: int) -> _Room:
        if count > self.free:
            raise OSError(errno.ENOMEM, "no memory")
        self.free -= count
        return _Room(self, count)


class _Room:
    def __init__(self, memory: Memory, count: int) -> None:
        self._memory, self._count = memory, count

    def close(self) -> None:
        self._memory.free += self._count


def needed(count: int) -> int:
    return count + ROUNDING_BYTES


def test_the_largest_that_is_known_is_kept_back() -> None:
    memory = Memory()
    reserve = Reserve(memory.take)
    assert reserve.held_bytes == 0
    sizes = (("a", 100, 100), ("b", 10 * MIB, 10 * MIB), ("b", 50, 10 * MIB), ("b", 40 * MIB, 40 * MIB))
    for name, count, largest in sizes:
        reserve.keep(name, count)
        assert needed(largest) <= reserve.held_bytes <= needed(largest) + SPARE_BYTES
        assert memory.free == 10**9 - reserve.held_bytes
    reserve.keep("b", 50)
    assert reserve.held_bytes == needed(100) + SPARE_BYTES, "not more than is of use"


def test_prefixes_that_were_not_used_for_long_are_forgotten() -> None:
    reserve = Reserve(Memory().take)
    reserve.keep("large", 100 * MIB)
    for number in range(KNOWN):
        reserve.keep(str(number), MIB)
    assert reserve.held_bytes == needed(MIB) + SPARE_BYTES


def test_it_is_given_up_for_a_block_and_had_again_after_it() -> None:
    memory = Memory()
    reserve = Reserve(memory.take)
    reserve.keep("a", MIB)
    held = reserve.held_bytes

    def fails() -> None:
        assert memory.free == 10**9
        reserve.keep("a", MIB)
        assert reserve.held_bytes == 0, "not taken again meanwhile"
        raise MemoryError

    with pytest.raises(MemoryError), reserve.given_up():
        fails()
    assert reserve.held_bytes == held


def test_what_others_took_meanwhile_costs_the_spare_part_first() -> None:
    memory = Memory(needed(MIB) + SPARE_BYTES)
    reserve = Reserve(memory.take)
    reserve.keep("a", MIB)
    assert memory.free == 0
    with reserve.given_up():
        memory.free -= SPARE_BYTES
    assert reserve.held_bytes == needed(MIB)
    with reserve.given_up():
        memory.free -= 1
    assert reserve.held_bytes == 0
    memory.free += 1
    reserve.keep("a", MIB)
    assert reserve.held_bytes == needed(MIB), "had again as soon as it can be"


def test_it_is_a_mapping_that_takes_no_memory() -> None:
    from hapi.allocator import anonymous_bytes

    reserve, before = Reserve(), anonymous_bytes()
    reserve.keep("a", 2**30)
    assert reserve.held_bytes > 2**30
    assert anonymous_bytes() - before < 2**29
    with reserve.given_up():
        assert reserve.held_bytes == 0


def test_a_shortage_ends_when_memory_has_sufficed_for_long() -> None:
    now, told = [0.0], list[bool]()
    shortage = Shortage(told.append, lambda: now[0])
    shortage.look()
    assert told == []
    shortage.begin()
    now[0] = CALM_SECONDS / 2
    shortage.begin()
    assert told == [True]
    now[0] = CALM_SECONDS
    shortage.look()
    assert told == [True], "it ran out again meanwhile"
    now[0] = 2 * CALM_SECONDS
    shortage.look()
    shortage.look()
    assert told == [True, False]


def test_it_is_given_up_for_further_tries_only() -> None:
    reserve = Reserve(Memory().take)
    reserve.keep("a", MIB)
    held: list[int] = []
    may_pause: list[bool] = []

    def work(attempt: int) -> str:
        held.append(reserve.held_bytes)
        may_pause.append(pause_of_thread() is not None)
        if not held[-1]:
            return "done"
        raise MemoryError

    patience = Patience("cpu", Metrics(), lambda seconds: None, reserve)
    with pausing(lambda: False):
        assert patience("the work", work, "prefix") == "done"
    assert held == [needed(MIB) + SPARE_BYTES, 0]
    assert may_pause == [True, False], "no guest takes what was given up"
    assert reserve.held_bytes == held[0]
