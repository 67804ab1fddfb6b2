"""The memory tier: the budget holds whatever happens, and what was used last stays."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from hypothesis import given
from hypothesis import strategies as st

from hapi.cache import MemoryCache
from hapi.cache.memory import ENTRY_BYTES

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 400)), max_size=60)


def key(number: int) -> bytes:
    return bytes([number]) * 32


@given(steps, st.integers(0, 5000))
def test_it_behaves_as_an_lru_and_keeps_its_budget(steps: list[tuple[bool, int, int]], budget: int) -> None:
    cache, model = MemoryCache(budget), OrderedDict[int, torch.Tensor]()
    hits = 0
    for is_put, name, size in steps:
        if is_put:
            value = torch.full((size,), float(name))
            cache.put(key(name), (value,))
            if ENTRY_BYTES + value.nbytes <= budget:
                model.pop(name, None)
                model[name] = value
                while sum(ENTRY_BYTES + kept.nbytes for kept in model.values()) > budget:
                    model.popitem(last=False)
        else:
            found = cache.get(key(name))
            assert (found is not None) == (name in model)
            if found is not None:
                model.move_to_end(name)
                assert torch.equal(found[0], model[name])
                hits += 1
        assert cache.nbytes == sum(ENTRY_BYTES + kept.nbytes for kept in model.values()) <= budget
    assert len(cache) == len(model)
    assert cache.hits == hits
    cache.clear()
    assert cache.nbytes == len(cache) == 0


def test_a_row_does_not_keep_its_batch_alive() -> None:
    batch = torch.arange(4000.0).reshape(4, 1000)
    cache = MemoryCache(100_000)
    cache.put(key(1), (batch[1], batch[:, 0]))
    batch.zero_()
    row, column = cache.get(key(1)) or ()
    assert torch.equal(row, torch.arange(1000.0) + 1000)
    assert torch.equal(column, torch.tensor([0.0, 1000.0, 2000.0, 3000.0]))
    assert row.untyped_storage().nbytes() == row.nbytes


def test_threads_share_one_budget() -> None:
    cache = MemoryCache(20 * (ENTRY_BYTES + 400))

    def work(first: int) -> None:
        for number in range(200):
            name = key((first + number) % 50)
            cache.put(name, (torch.full((100,), 1.0),))
            cache.get(name)

    threads = [threading.Thread(target=work, args=(10 * number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.nbytes == len(cache) * (ENTRY_BYTES + 400) <= cache.budget_bytes
    assert cache.hits + cache.misses == 1000
