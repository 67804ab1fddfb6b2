"""Keys change with everything that decides a feature, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from hapi.cache import FeatureKeys
from hapi.data import Manifest, Sample, TransformSpec, describe_transform
from hapi.data.manifest import table_of

PLAIN = describe_transform(v2.Compose([v2.Resize(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
LARGER = describe_transform(v2.Compose([v2.Resize(9), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
RANDOM = describe_transform(v2.Compose([v2.RandomCrop(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
JOB = {"seed": 1, "epoch": 2, "model_digest": "a" * 64, "cut": "layer3", "precision": "float32"}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1, max_size=6)
samples = st.lists(
    st.builds(
        Sample,
        key=names,
        offset=st.integers(0, 2**40),
        length=st.integers(0, 2**40),
        label=st.integers(0, 2),
        version=names,
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: (sample.key, sample.offset, sample.length, sample.version),
)


def manifest(rows: list[Sample], uri: str = "file:///pictures", classes: tuple[str, ...] = ("a", "b", "c")) -> Manifest:
    columns = [[getattr(row, name) for row in rows] for name in ("key", "length", "version", "label", "offset")]
    return Manifest(uri, classes, table_of(*columns))


def keys(
    rows: list[Sample], transform: TransformSpec = PLAIN, uri: str = "file:///pictures", **job: Any
) -> list[bytes]:
    return FeatureKeys(manifest(rows, uri), transform, **{**JOB, **job}).many(range(len(rows)))


@given(samples, st.randoms(use_true_random=False))
def test_order_labels_and_other_samples_do_not_count(rows: list[Sample], chance: Any) -> None:
    found = dict(zip(rows, keys(rows), strict=True))
    assert len(set(found.values())) == len(rows)
    assert {len(key) for key in found.values()} == {32}
    shuffled = chance.sample(rows, len(rows))[: len(rows) // 2 + 1]
    relabelled = [replace(row, label=chance.randrange(3)) for row in shuffled]
    assert keys(relabelled) == [found[row] for row in shuffled]


@given(samples)
def test_one_by_one_and_together_are_equal(rows: list[Sample]) -> None:
    for transform in (PLAIN, RANDOM):
        features = FeatureKeys(manifest(rows), transform, **JOB)  # type: ignore[arg-type]
        assert features.many(range(len(rows))) == [features.of(index) for index in range(len(rows))]


@given(samples, st.integers(0, 9), st.integers(0, 9))
def test_seed_epoch_and_place_count_only_where_something_is_drawn(rows: list[Sample], seed: int, epoch: int) -> None:
    other = {"seed": seed, "epoch": epoch}
    assert keys(rows, **other) == keys(rows)
    assert (keys(rows, RANDOM, **other) == keys(rows, RANDOM)) == (seed == JOB["seed"] and epoch == JOB["epoch"])
    extra = replace(rows[0], key="0" + rows[0].key)
    assert keys([extra, *rows])[1:] == keys(rows)
    assert keys([extra, *rows], RANDOM)[1] != keys(rows, RANDOM)[0]


@given(samples, st.sampled_from(["key", "offset", "length", "version"]))
def test_another_object_has_another_key(rows: list[Sample], field: str) -> None:
    row = rows[0]
    value = getattr(row, field)
    changed = replace(row, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert keys([changed]) != keys([row])


def test_neighbouring_texts_do_not_run_together() -> None:
    def key(name: str, version: str) -> list[bytes]:
        return keys([Sample(name, 0, 1, 0, version)])

    assert key("ab", "c") != key("a", "bc")


@pytest.mark.parametrize(
    "job",
    [
        {"uri": "s3://pictures"},
        {"transform": LARGER},
        {"model_digest": "b" * 64},
        {"cut": "layer4"},
        {"precision": "bf16"},
    ],
    ids=lambda job: next(iter(job)),
)
def test_another_computation_has_another_key(job: dict[str, Any]) -> None:
    rows = [Sample("a.jpg", 0, 100, 0, "1")]
    assert keys(rows, **job) != keys(rows)


def test_a_key_stays_what_it_is() -> None:
    """What lies on disks is found again; a change of the format changes FORMAT."""
    assert (
        keys([Sample("a.jpg", 0, 100, 0, "1")])[0].hex()
        == "ebb218a1c58a044e1f39516e7cd69b298f2c6d172d1aa59a6cfa6ac9e7b8de1a"
    )


def test_samples_outside_of_the_manifest_are_refused() -> None:
    features = FeatureKeys(manifest([Sample("a.jpg", 0, 100, 0, "1")]), PLAIN, **JOB)  # type: ignore[arg-type]
    for index in (-1, 1):
        with pytest.raises(IndexError):
            features.of(index)
        with pytest.raises(IndexError):
            features.many([0, index])
