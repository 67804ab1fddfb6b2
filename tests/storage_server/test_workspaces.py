"""What prefixes take beyond their tensors: cautious at first, learned from real batches, remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hapi.model import TensorSpec
from profiler.memory import MemoryModel
from storage_server.memory.workspaces import UNKNOWN_CPU, Forgetful, Workspaces, workspace_of

MODEL = MemoryModel(10_000, ((100, 0),))


@dataclass
class Meter:
    """Says what was planned, one answer per measurement."""

    answers: list[int | None]
    started: int = 0

    def start(self) -> None:
        self.started += 1

    def stop(self) -> int | None:
        return self.answers.pop(0)


@dataclass
class Part:
    """As much of a prefix as is asked for."""

    key: tuple[str, str] = ("digest", "layer1")
    engine: str = "eager"
    input: TensorSpec = field(default_factory=lambda: TensorSpec((5,), torch.float32))
    memory: MemoryModel = MODEL


def run(workspaces: Workspaces, part: Part, *sizes: int) -> None:
    for size in sizes:
        with workspaces.observing(part, size):
            pass


def test_before_it_has_run_a_prefix_is_judged_with_caution() -> None:
    model = Workspaces("cpu", meter=Meter([])).measured(Part())
    assert model.predicted(4) == 10_000 + int(400 * (1 + UNKNOWN_CPU))


def test_a_measured_batch_is_predicted_as_it_was() -> None:
    part, workspaces = Part(), Workspaces("cpu", meter=Meter([100, 700]))
    run(workspaces, part, 1, 4)
    assert part.memory.predicted(4) == 10_000 + 700 + 4 * 20, "the input was there before the batch, and counts"
    assert workspaces.peak_bytes(part) == part.memory.predicted(4)
    assert part.memory.predicted(8) == part.memory.predicted(4) + int(400 * (1 + UNKNOWN_CPU))


def test_only_batches_larger_than_any_before_are_measured() -> None:
    meter = Meter([100, 700])
    run(Workspaces("cpu", meter=meter), Part(), 1, 1, 4, 3, 4, 1)
    assert meter.started == 2


def test_of_sizes_between_whole_batches_only_those_twice_as_large_are_measured() -> None:
    meter = Meter([100] * 9)
    part, workspaces = Part(), Workspaces("cpu", meter=meter)
    run(workspaces, part, 3)
    assert meter.started == 1, "the first tells, whatever its size"
    run(workspaces, part, 5)
    assert meter.started == 1
    run(workspaces, part, 7, 12, 16, 28)
    assert meter.started == 3, "7 is twice 3, 16 a whole batch; 12 and 28 are neither"


def test_an_error_teaches_nothing() -> None:
    part, workspaces = Part(), Workspaces("cpu", meter=Meter([900]))
    with pytest.raises(MemoryError), workspaces.observing(part, 2):
        raise MemoryError
    assert part.memory == MODEL
    run(workspaces, part, 2)
    assert part.memory.predicted(2) == 10_000 + 940


def test_a_system_that_does_not_tell_leaves_the_caution() -> None:
    part, workspaces = Part(), Workspaces("cpu", meter=Meter([None]))
    run(workspaces, part, 2)
    assert workspaces.measured(part).predicted(2) == 10_000 + int(200 * (1 + UNKNOWN_CPU))
    assert workspaces.peak_bytes(part) is None


def test_it_is_remembered_per_device_and_engine() -> None:
    learned = Forgetful()
    run(Workspaces("cpu", learned, Meter([700])), Part(), 4)
    again = Workspaces("cpu", learned, Meter([]))
    assert again.measured(Part()).predicted(4) == 10_000 + 780
    assert again.measured(Part(engine="compiled")).predicted(4) == 10_000 + int(400 * (1 + UNKNOWN_CPU))
    assert Workspaces("cuda", learned, Meter([])).peak_bytes(Part()) is None


def test_nonsense_in_the_file_is_ignored() -> None:
    learned = Forgetful()
    workspaces = Workspaces("cpu", learned, Meter([700]))
    run(workspaces, Part(), 4)
    (name,) = learned._values
    for nonsense in (7, [], {"four": 3, "4": "much", "-1": 5, "0": 9}):
        learned.put(name, nonsense)
        assert workspaces.peak_bytes(Part()) is None


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 10**7), max_size=6), st.integers(1, 64))
def test_no_measurement_is_ever_predicted_too_small(peaks: dict[int, int], batch: int) -> None:
    model = MODEL.with_workspace(workspace_of(MODEL, peaks, UNKNOWN_CPU))
    assert all(model.predicted(size) - model.weight_bytes >= taken for size, taken in peaks.items())
    assert model.predicted(batch) <= model.predicted(batch + 1)
    fits = model.largest_batch(model.predicted(batch))
    assert model.predicted(fits) <= model.predicted(batch) < model.predicted(fits + 1)


def test_kept_memory_is_released_before_a_batch_only_when_memory_is_short() -> None:
    short = False
    workspaces = Workspaces("cpu", meter=Meter([1000]), is_short=lambda: short)
    part = Part()
    run(workspaces, part, 4, 4)
    assert workspaces.releases == 0
    short = True
    run(workspaces, part, 4)
    assert workspaces.releases == 1
