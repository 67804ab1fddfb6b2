"""Which stored objects cross the link to be measured, and in which ways they may travel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest
import torch
from torch import nn

from hapi.model import capture
from hapi.plan import INPUT, Link, Share
from hapi.wire import Allowed
from profiler import LoadCost, TierProfile, TierRow, combine, plan
from profiler.loading import TrimCost
from profiler.remote import ServerClient
from profiler.tier import TierWay
from profiler.tiers import OBJECT_SECONDS, Job, _Objects, profile_here


@dataclass(frozen=True)
class Photographs:
    """A dataset of objects of 100 kB."""

    samples: int
    digest: str = "0" * 64
    classes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return 100_000 * self.samples


class FakeServer:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def objects(self, digest: str, indices: list[int]) -> list[bytes]:
        self.asked.append(indices)
        return [b"jpeg"] * len(indices)


def objects_over(bits_per_s: float, samples: int = 1000) -> tuple[_Objects, FakeServer]:
    server = FakeServer()
    return _Objects(cast(ServerClient, server), Photographs(samples), 32, Link(bits_per_s)), server


@pytest.mark.parametrize(("bits_per_s", "count"), [(1e9, 32), (8e6, 20), (1e6, 4), (1.0, 4), (0.0, 4)])
def test_over_a_slow_link_fewer_of_them_cross(bits_per_s: float, count: int) -> None:
    objects, server = objects_over(bits_per_s)
    assert len(objects.get()) == count
    assert objects.get() is objects.get()
    assert len(server.asked) == 1, "they cross once"
    if count > 4:
        assert count * 100_000 * 8 <= OBJECT_SECONDS * bits_per_s


def test_a_small_dataset_has_no_more_than_its_own() -> None:
    objects, _ = objects_over(1e9, samples=3)
    assert objects.indices == [0, 1, 2]


def table(*, ways: tuple[TierWay, ...] = (), decode_seconds: float = 0.004, suffix: float = 0.01) -> TierProfile:
    rows = (TierRow(INPUT, 600_000, 0.0, suffix, ways=ways), TierRow("output", 4_000, 0.01, 0.0))
    return TierProfile("cpu", 8, rows, 0.005, 0.001, decode_seconds, 100_000.0)


def test_pictures_may_be_trimmed_where_the_server_says_what_that_costs() -> None:
    ways = (
        TierWay("float32", "none", 100_000, 0.0, 0.004),
        TierWay("float32", "trimmed", 60_000, 0.002, 0.003),
    )
    profile = combine(table(ways=ways), table(decode_seconds=0.008), link=None, samples=8, batch_size=4)
    stored, trimmed = profile.cut(INPUT).wire
    assert (stored.out_bytes, stored.server_seconds) == (100_000, 0.001)
    assert stored.client_seconds == pytest.approx(profile.cut(INPUT).client_seconds) == pytest.approx(0.018)
    assert (trimmed.compression, trimmed.out_bytes) == ("trimmed", 60_000)
    assert trimmed.server_seconds == pytest.approx(0.003)
    assert trimmed.client_seconds == pytest.approx(0.016), "decoding is as much less work here as it is there"

    slow = plan(profile, "none", bandwidth=1e7)
    assert slow.cuts == (Share(INPUT, 1.0, "float32", "trimmed"),)
    assert "the part that the transform reads" in " ".join(slow.reasons)
    assert "trimmed" in str(slow)
    busy = replace(profile, cuts=tuple(replace(cut, client_seconds=0.0, wire=()) for cut in profile.cuts))
    assert plan(busy, "none", bandwidth=1e12).cuts == (Share(INPUT, 1.0),)


def test_a_table_without_ways_gives_objects_as_they_are_stored() -> None:
    assert combine(table(), table(), link=None, samples=8, batch_size=4).cut(INPUT).wire == ()


@pytest.mark.parametrize(("trims", "count"), [(True, 2), (False, 0)])
def test_pictures_are_trimmed_only_for_who_asks_for_it(trims: bool, count: int) -> None:
    load = LoadCost(0.004, 0.001, 0.003, 100_000.0, trimmed=TrimCost(0.6, 0.001, 0.7))
    graph = capture(nn.Flatten(), torch.zeros(2, 3, 4, 4))
    found = profile_here(graph, load, Job(8, 4, allowed=Allowed(compression="auto", trims=trims), repeats=1))
    assert len(found.cut(INPUT).wire) == count
    assert [way.out_bytes for way in found.cut(INPUT).wire] == [100_000, 60_000][:count]
