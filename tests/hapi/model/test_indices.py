"""Indices out of range are an InputError that names the place, on every device, before a kernel reads by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hapi.errors import InputError
from hapi.model import capture, load_archive, save_archive


class Words(nn.Module):
    """Reads an embedding by its input, and by a table of positions that is a weight."""

    def __init__(self, positions: list[int]) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.places = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("positions", torch.tensor(positions))

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.places[self.positions]


@pytest.mark.parametrize(("low", "high"), [(0, 10), (-1, 3), (3, 2**40)])
def test_token_ids_outside_the_vocabulary_are_refused(low: int, high: int) -> None:
    graph = capture(Words([0, 1, -3]), torch.zeros(1, 3, dtype=torch.long))
    ids = torch.tensor([[1, 2, 9], [0, low, high]])
    with pytest.raises(InputError, match=r"in words\) reads by indices from 0 to 9 and was given"):
        graph(ids)


def test_indices_within_range_and_from_the_end_are_read() -> None:
    module = Words([0, 1, -3])
    graph = capture(module, torch.zeros(1, 3, dtype=torch.long))
    ids = torch.tensor([[1, 2, 9], [0, 0, 3]])
    with torch.no_grad():
        assert torch.equal(graph(ids), module(ids))


@pytest.mark.parametrize("position", [3, -4])
def test_an_archive_cannot_smuggle_in_an_index(tmp_path: Path, position: int) -> None:
    module = Words([0, 1, 2])
    graph = capture(module, torch.zeros(1, 3, dtype=torch.long))
    module.positions[1] = position
    save_archive(graph, tmp_path / "model")
    with pytest.raises(InputError, match="reads by indices from -3 to 2"):
        load_archive(tmp_path / "model")(torch.zeros(2, 3, dtype=torch.long))


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ranges = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.ranges += func is torch.ops.aten.aminmax.default
        return func(*args, **(kwargs or {}))


def test_constant_indices_are_checked_once() -> None:
    program = capture(Words([0, 1, 2]), torch.zeros(1, 3, dtype=torch.long)).whole
    counts = []
    for _ in range(3):
        with Count() as count:
            program(torch.zeros(2, 3, dtype=torch.long))
        counts.append(count.ranges)
    assert counts == [2, 1, 1]
