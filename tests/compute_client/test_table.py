"""The table of features: every row that was put and fitted comes back, and no more bytes than allowed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compute_client.table
from compute_client.table import FeatureTable

ROWS = 12
puts = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=6), max_size=8)


def row(number: int) -> tuple[torch.Tensor, ...]:
    return torch.full((3, 2), float(number)), torch.tensor(number, dtype=torch.float16)


def rows(numbers: list[int]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*map(row, numbers), strict=True))


@given(puts, st.integers(0, 600))
def test_it_keeps_what_comes_first_within_its_bytes(puts: list[list[int]], budget: int) -> None:
    table, kept = FeatureTable(ROWS, budget), []
    room = max(0, budget - 8 * ROWS) // 26
    for numbers in puts:
        if not numbers:
            continue
        new = [number for number in dict.fromkeys(numbers) if number not in kept][: room - len(kept)]
        found = table.put(np.array(numbers, np.int64), rows(numbers))
        assert found <= len(new)  # repeated numbers may cost a place in one put
        kept = [number for number in range(ROWS) if table.has(np.array([number]))[0]]
        assert len(kept) == len(table) <= room
        assert table.nbytes <= max(budget, 8 * ROWS)
    if kept:
        order = np.array(kept[::-1] + kept, np.int64)
        for found_column, column in zip(table.gather(order), rows(order.tolist()), strict=True):
            assert torch.equal(found_column, column)
    table.clear()
    assert not table.has(np.arange(ROWS)).any()


@given(
    st.sets(st.integers(0, ROWS - 1)),
    st.sets(st.integers(0, ROWS - 1)),
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=20),
    st.integers(1, 80),
    st.randoms(),
)
def test_rows_that_are_not_here_are_fetched_into_their_places(
    kept: set[int], lost: set[int], wanted: list[int], guest_bytes: int, random: Random
) -> None:
    """Whatever is kept, in whichever order the others come, and however few at a time."""
    table = FeatureTable(ROWS, 10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute_client.table, "GUEST_BYTES", guest_bytes)
        table.put(np.array(sorted(kept), np.int64), rows(sorted(kept) or [0])[: 2 if kept else 0])

    def fetch(numbers: np.ndarray, into: tuple[torch.Tensor, ...]) -> np.ndarray:
        assert kept.isdisjoint(numbers.tolist())
        assert kept.isdisjoint(wanted) or len(numbers) * 26 <= max(26, guest_bytes)
        order = random.sample(range(len(numbers)), len(numbers))
        for column, values in zip(into, rows(numbers[order].tolist()), strict=True):
            column.copy_(values)
        return np.array([-1 if numbers[position] in lost else position for position in order], np.int64)

    numbers = np.array(wanted, np.int64)
    kinds = ((torch.float32, (3, 2)), (torch.float16, ()))
    there, features = table.gather_with(numbers, table.slots(numbers), fetch, kinds)
    expected = [place for place, number in enumerate(wanted) if number in kept or number not in lost]
    assert there.tolist() == expected
    if expected:
        for found, column in zip(features, rows([wanted[place] for place in expected]), strict=True):
            assert torch.equal(found, column)
    assert len(table) == len(kept), "guests do not stay"


def test_what_is_handed_out_is_the_callers() -> None:
    table = FeatureTable(ROWS, 10_000)
    given_rows = rows([1, 2])
    table.put(np.array([1, 2]), given_rows)
    for tensor in (*given_rows, *table.gather(np.array([1, 2]))):
        tensor.zero_()
    assert torch.equal(table.gather(np.array([2, 1]))[0], rows([2, 1])[0])


def test_rows_of_another_kind_are_not_kept() -> None:
    table = FeatureTable(ROWS, 10_000)
    table.put(np.array([1]), rows([1]))
    assert table.put(np.array([2]), (torch.zeros(1, 3),)) == 0
    assert not table.has(np.array([2]))[0]
