"""Compiled prefixes are ready before their first batch, and their batch sizes known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from awkward_models import Archive

from hapi.cancel import Cancel
from storage_server.extraction.engine import Prefix
from storage_server.extraction.rehearsal import ENOUGH_SECONDS, Rehearsals
from storage_server.extraction.sizing import KneePolicy, Waiting, curve_name
from storage_server.memory.budget import MemoryBudget
from storage_server.memory.workspaces import Workspaces
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.knee import LONG_SECONDS
from storage_server.scheduling.rates import Rates
from storage_server.scheduling.remembered import Remembered

FLOW = Flow("a")


class Inline:
    """Stands where the device's executor does."""

    def call(self, run: Callable[[], Any], cancel: Cancel, flow: Flow) -> Any:
        cancel.check()
        assert flow is FLOW
        return run()


class FakeEngine:
    """Takes `overhead` and 1 for each sample, in `unit` seconds, by a clock of its own; more than `fits` run out of
    memory."""

    precision = "float32"

    def __init__(
        self, kind: str = "compiled", overhead: float = 1.0, fits: int = 64, unit: float = ENOUGH_SECONDS / 50
    ) -> None:
        self.kind, self.overhead, self.fits, self.unit = kind, overhead, fits, unit
        self.sizes: list[int] = []
        self.now = 0.0
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def __call__(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("out of memory, said the device")
        self.sizes.append(len(batch))
        self.now += (self.overhead + len(batch)) * self.unit
        return (batch,)


class FakeMeter:
    def start(self) -> None:
        pass

    def stop(self) -> int:
        return 1000


def prefix_of(archive: Archive, engine: FakeEngine) -> Prefix:
    return Prefix.of(archive.graph, "output", "cpu", archive.digest, lambda program, *, precision: engine)  # type: ignore[arg-type,return-value]


@pytest.fixture
def remembered() -> Remembered:
    return Remembered()


def rehearsed(engine: FakeEngine, prefix: Prefix, remembered: Remembered, most: int = 32) -> float | None:
    workspaces = Workspaces("cpu", remembered, FakeMeter())
    rehearsals = Rehearsals(Inline(), Rates(), remembered, workspaces, lambda: engine.now)  # type: ignore[arg-type]
    return rehearsals.seconds(prefix, most, Cancel(), FLOW)


def test_a_compiled_prefix_is_timed_and_its_job_begins_at_the_right_batch(
    archive: Archive, remembered: Remembered
) -> None:
    engine = FakeEngine(overhead=0.01)
    prefix = prefix_of(archive, engine)
    assert rehearsed(engine, prefix, remembered) == pytest.approx((1 + 0.01 / 16) * engine.unit)
    assert engine.sizes == [*2 * [4, 8, 16], 32]
    policy = KneePolicy(MemoryBudget("cpu", 10**9, free=lambda device: 10**12), 32, remembered)
    decision = policy.decide(prefix, [Waiting("a", prefix, 100, 1, 10**6)])
    assert (decision.samples, decision.reason) == (4, "knee")


def test_a_job_need_not_measure_the_memory_of_what_was_rehearsed(archive: Archive, remembered: Remembered) -> None:
    engine = FakeEngine()
    prefix = prefix_of(archive, engine)
    rehearsed(engine, prefix, remembered)
    later = Workspaces("cpu", remembered)
    assert later.peak_bytes(prefix) == prefix.memory.weight_bytes + 1000 + 32 * prefix.input.bytes
    assert later.measured(prefix) == prefix.memory


def test_where_larger_batches_gain_they_are_explored_further(archive: Archive, remembered: Remembered) -> None:
    engine = FakeEngine(overhead=10.0, unit=ENOUGH_SECONDS / 200)
    prefix = prefix_of(archive, engine)
    rehearsed(engine, prefix, remembered)
    policy = KneePolicy(MemoryBudget("cpu", 10**9, free=lambda device: 10**12), 64, remembered)
    decision = policy.decide(prefix, [Waiting("a", prefix, 100, 1, 10**6)])
    assert (decision.samples, decision.reason) == (32, "exploring")


def test_what_is_known_is_not_timed_again(archive: Archive, remembered: Remembered) -> None:
    engine = FakeEngine()
    prefix = prefix_of(archive, engine)
    first = rehearsed(engine, prefix, remembered)
    assert rehearsed(engine, prefix, remembered) == first
    assert (engine.sizes, engine.prepared) == ([*2 * [4, 8, 16], 32], 1)


@pytest.mark.parametrize(("unit", "sizes"), [(1.0, [4, 4]), (0.9 * LONG_SECONDS / 10, [4, 8, 4, 8])])
def test_of_a_slow_network_no_larger_batches_are_tried_than_in_a_job(
    archive: Archive, remembered: Remembered, unit: float, sizes: list[int]
) -> None:
    engine = FakeEngine(unit=unit)
    prefix = prefix_of(archive, engine)
    assert rehearsed(engine, prefix, remembered) == pytest.approx((1 + 1 / max(sizes)) * engine.unit)
    assert engine.sizes == sizes


def test_code_that_was_refused_is_only_tried(archive: Archive, remembered: Remembered) -> None:
    engine = FakeEngine(kind="eager")
    prefix = prefix_of(archive, engine)
    assert rehearsed(engine, prefix, remembered) is None
    assert (engine.sizes, engine.prepared) == ([], 1)


@pytest.mark.parametrize(("fits", "most", "sizes"), [(7, 32, [4]), (64, 8, [4, 8]), (64, 3, [2]), (0, 32, [])])
def test_batches_are_no_larger_than_may_be_and_fit(
    archive: Archive, remembered: Remembered, fits: int, most: int, sizes: list[int]
) -> None:
    engine = FakeEngine(fits=fits)
    prefix = prefix_of(archive, engine)
    found = rehearsed(engine, prefix, remembered, most)
    assert engine.sizes == len(engine.sizes) // max(1, len(sizes)) * sizes
    assert len(engine.sizes) >= 2 * len(sizes)
    assert found == (None if not sizes else pytest.approx((1 + 1 / sizes[-1]) * engine.unit))
    assert (remembered.get(curve_name(prefix)) is None) == (not sizes)
