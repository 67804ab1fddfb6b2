"""Peak memory: exact from liveness, never above what a run really takes, and with its workspace never below."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hapi.model import capture
from profiler import MemoryModel, Workspace, measure_peak, prefix_memory

# how PyTorch's profiler speaks when it cannot find a GPU driver
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")


class Fork(nn.Module):
    """Pointwise work only, so that operations need no workspace: two branches, a view, a concatenation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.relu(x)
        right = torch.sigmoid(x) * 2
        joined = torch.cat([left, right.reshape(right.shape)], dim=1)
        return joined.flatten(1)[:, :5].contiguous()


class Widening(nn.Module):
    """The peak is in the middle, at the concatenation of four copies, long before the small output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([x, x + 1, x + 2, x + 3], dim=1)
        return torch.tanh(wide).mean(dim=(2, 3))


class Growing(nn.Module):
    """A large constant joins a small batch: the peak is not proportional to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(500, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.tanh(self.table * 2)
        return x @ table.t().contiguous()[:, :7]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )


MODELS = {"fork": Fork, "widening": Widening}
IMAGE = torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_prediction_equals_measurement_to_the_byte(name: str, batch: int) -> None:
    graph = capture(MODELS[name]().eval(), IMAGE)
    assert prefix_memory(graph.whole).live_bytes(batch) == measure_peak(graph.whole, batch)


def test_worked_out_by_hand() -> None:
    graph = capture(Fork().eval(), IMAGE)
    # alive at the concatenation: the input, both branches, and the result of twice their size
    sample = 3 * 16 * 16 * 4
    model = prefix_memory(graph.whole)
    assert model.per_sample_bytes == 5 * sample
    assert model.predicted(7) == 7 * 5 * sample
    assert model.weight_bytes == 0


def test_what_does_not_grow_with_the_batch_is_kept_apart() -> None:
    graph = capture(Growing().eval(), torch.randn(2, 16))
    model = prefix_memory(graph.whole)
    assert model.weight_bytes == 500 * 16 * 4
    assert model.live_bytes(1) > 2 * 500 * 16 * 4
    assert model.live_bytes(1000) < 3 * model.live_bytes(1)


@pytest.mark.parametrize("build", [convolutions, lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.GELU())])
def test_real_runs_take_the_prediction_and_their_workspace(build: object) -> None:
    torch.manual_seed(0)
    graph = capture(build().eval(), torch.randn(2, 3, 16, 16))  # type: ignore[operator]
    for cut in graph.cuts[1:]:
        program, _ = graph.split(cut)
        model = prefix_memory(program)
        fitted = model.with_workspace(Workspace.fit(program, batches=(2, 8)))
        measured = measure_peak(program, 5)
        assert model.live_bytes(5) <= measured <= fitted.live_bytes(5) + fitted.workspace.bytes(5) + 8192


def test_a_suffix_needs_less_than_the_whole() -> None:
    graph = capture(convolutions().eval(), IMAGE)
    peaks = [prefix_memory(graph.split(cut)[1]).per_sample_bytes for cut in graph.cuts]
    assert peaks == sorted(peaks, reverse=True)
    assert prefix_memory(graph.split("input")[0]).per_sample_bytes == 3 * 16 * 16 * 4
    assert prefix_memory(graph.split("output")[1]).per_sample_bytes == 32 * 4


@pytest.mark.parametrize("lines", [((100, 0),), ((100, 0), (10, 5000)), ((7, 3), (1, 999))])
@pytest.mark.parametrize("budget", [0, 1999, 2000, 7100, 123_456])
def test_the_largest_batch_is_the_largest_that_fits(lines: tuple[tuple[int, int], ...], budget: int) -> None:
    model = MemoryModel(2000, lines, Workspace.of((5, 50), (9, -300)))
    batch = model.largest_batch(budget)
    assert batch == 0 or model.predicted(batch) <= budget
    assert model.predicted(batch + 1) > budget


def test_workspace_is_never_negative() -> None:
    graph = capture(Fork().eval(), IMAGE)
    assert Workspace.fit(graph.whole) == Workspace()
