"""How many photographs a network trains on."""

from __future__ import annotations

import pytest

from benchmarks.e2e.counts import batch_size, fitting, parse_samples, sample_counts
from benchmarks.e2e.experiment import Settings, batched
from benchmarks.testbed.services import Store
from hapi.errors import InputError

MODELS = ("torchvision:mobilenet_v2", "torchvision:vit_b_16")


def no_pace(model: str) -> float:
    raise AssertionError("everything was asked for")


def test_a_number_is_for_all_and_single_ones_may_differ() -> None:
    counts = sample_counts(MODELS, ("128", "vit_b_16=48"), None, no_pace)
    assert counts == {"torchvision:mobilenet_v2": 128, "torchvision:vit_b_16": 48}


def test_without_a_number_the_pace_decides() -> None:
    paces = {"torchvision:mobilenet_v2": 0.025, "torchvision:vit_b_16": 0.4}
    assert sample_counts(MODELS, (), None, paces.__getitem__) == {
        "torchvision:mobilenet_v2": 480,
        "torchvision:vit_b_16": 48,
    }
    assert sample_counts(MODELS, ("torchvision:vit_b_16=64",), 96, no_pace) == {
        "torchvision:mobilenet_v2": 96,
        "torchvision:vit_b_16": 64,
    }


def test_no_job_is_too_short_or_too_long() -> None:
    assert fitting(0.0) == 1024
    assert fitting(0.1) == 128
    assert fitting(float("inf")) == 48


def test_few_photographs_make_small_batches_but_several() -> None:
    assert {samples: batch_size(samples) for samples in (48, 64, 192, 512)} == {48: 8, 64: 10, 192: 32, 512: 32}
    assert (batch_size(1), batch_size(0)) == (1, 32)
    stores = {"torchvision:vit_b_16": Store("s3://few", 48, 1), "torchvision:alexnet": Store("s3://many", 498, 1)}
    (said,) = batched(Settings(), stores)
    assert said.startswith("training batches of fewer than 32: vit_b_16 8: so that an epoch has 6")
    assert batched(Settings(batch_size=32), stores) == []


def test_the_last_word_counts() -> None:
    assert parse_samples(("8", "a:b=3", "9", "a:b=4")) == (9, {"a:b": 4})


@pytest.mark.parametrize("text", ["", "few", "0", "-3", "vit_b_16=", "vit_b_16=0", "vit_b_16=x"])
def test_what_is_no_number_is_told(text: str) -> None:
    with pytest.raises(InputError, match="say a number of photographs"):
        parse_samples((text,))


def test_a_network_that_is_not_run_is_told() -> None:
    with pytest.raises(InputError, match="torchvision:alexnet"):
        sample_counts(MODELS, ("alexnet=4",), None, no_pace)
