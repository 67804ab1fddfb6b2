"""Suffixes run in bounded batches, in eval mode, and leave the user's module as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compute_client.stats import LoaderStats
from compute_client.suffix import LEAST_BATCH, MOST_BATCH, SUFFIX_BYTES, SuffixRunner, frozen_copy, suffix_batch
from hapi.errors import InputError
from hapi.model import Graph

CPU = torch.device("cpu")


def test_batches_follow_training_within_bounds(graph: Graph) -> None:
    assert suffix_batch(nn.Identity(), 1) == LEAST_BATCH
    assert suffix_batch(nn.Identity(), 32) == 32
    assert suffix_batch(nn.Identity(), 10**6) == MOST_BATCH


def test_no_more_than_make_activations_much_more_than_weights(graph: Graph, monkeypatch) -> None:
    _, suffix = graph.split("stem")
    monkeypatch.setattr(type(suffix), "weight_bytes", 1000)
    for peak, expected in ((30, 32), (200, 20), (4000, LEAST_BATCH)):
        monkeypatch.setattr(suffix, "peak_bytes", lambda batch, peak=peak: peak * batch)
        assert suffix_batch(suffix, 32) == expected


def test_a_large_suffix_gets_smaller_batches(graph: Graph, monkeypatch) -> None:
    _, suffix = graph.split("stem")
    monkeypatch.setattr(suffix, "peak_bytes", lambda batch: SUFFIX_BYTES // 3)
    assert suffix_batch(suffix, 32) == 3
    monkeypatch.setattr(suffix, "peak_bytes", lambda batch: 9 * SUFFIX_BYTES)
    assert suffix_batch(suffix, 32) == 1


def test_pieces_are_joined_and_are_ordinary_tensors() -> None:
    sizes = []

    def compute(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return 2 * x

    runner = SuffixRunner({"cut": compute}, device=CPU, stats=LoaderStats(), batch_size=8)
    values = torch.randn(19, 3)
    (features,) = runner("cut", (values,))
    assert sizes == [8, 8, 3]
    assert torch.equal(features, 2 * values)
    assert not features.is_inference()


def test_a_twin_is_frozen_in_eval_mode_and_shares_its_parameters(backbone: nn.Module) -> None:
    twin = frozen_copy(backbone, CPU)
    backbone.train()
    assert not any(module.training for module in twin.modules())
    assert next(twin.parameters()) is next(backbone.parameters())
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(twin(x), twin(x))  # the dropout is off


@pytest.mark.parametrize(
    "compute", [lambda x: x.flatten(0, 1), lambda x: x[:2], lambda x: x.mean(), lambda x: (x, x.flatten(0, 1))]
)
def test_a_backbone_without_a_row_per_sample_is_refused(compute: Callable[[torch.Tensor], Any]) -> None:
    run = SuffixRunner({"input": compute}, device=CPU, stats=LoaderStats(), batch_size=8)
    with pytest.raises(InputError, match=r"answers 8 samples .* its first dimension must be the batch"):
        run("input", (torch.zeros(9, 3, 4),))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_twin_is_of_what_is_inside_wrappers(wrap: Callable[[nn.Module], Any]) -> None:
    module = nn.Sequential(wrap(nn.Linear(3, 2)), nn.ReLU())
    wrapper = module[0]
    twin = frozen_copy(wrap(module), CPU)
    assert [type(part) for part in twin.modules()] == [nn.Sequential, nn.Linear, nn.ReLU]
    assert next(twin.parameters()) is next(module.parameters())
    assert module[0] is wrapper


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    module[0].lock = threading.Lock()
    with pytest.raises(InputError, match=r"Sequential cannot be copied.*lock.*__deepcopy__"):
        frozen_copy(module, CPU)
