"""Which stored objects cross the link to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from hapi.plan import Link
from profiler.remote import ServerClient
from profiler.tiers import OBJECT_SECONDS, _Objects


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
