"""Batch sizes, and what happens when memory runs out all the same."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import pytest
import torch
from awkward_models import Archive

from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BusyError, MemoryBudgetError
from profiler.memory import MemoryModel
from storage_server.extraction.batching import BatchSizer, run_batch
from storage_server.extraction.engine import Prefix
from storage_server.memory.budget import MemoryBudget
from storage_server.memory.outofmemory import is_out_of_memory
from storage_server.metrics import Metrics


@dataclass
class SmallDevice(Prefix):
    """A prefix whose device holds only `fits` samples: more is an out-of-memory error, as torch words it."""

    fits: int = 4
    error: type[Exception] = torch.OutOfMemoryError
    sizes: list[int] = field(default_factory=list)
    garbage: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    alive_at_start: list[bool] = field(default_factory=list)

    def run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.alive_at_start.append(any(reference() is not None for reference in self.garbage))
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            intermediate = torch.zeros(1000)
            self.garbage.append(weakref.ref(intermediate))
            raise self.error(f"out of memory, said the device, {intermediate.numel()}")
        return (batch * 2,)


def small_device(archive: Archive, fits: int, error: type[Exception] = torch.OutOfMemoryError) -> SmallDevice:
    real = Prefix.of(archive.graph, "output", "cpu", archive.digest)
    return SmallDevice(
        real.key, real.model, real.cut, real.input, real.memory, "cpu", real._program, fits=fits, error=error
    )


def sizer_of(setting: int = 10**9, max_batch: int = 32, free: int = 10**12) -> BatchSizer:
    return BatchSizer(MemoryBudget("cpu", setting, free=lambda device: free), max_batch)


def joined(pieces: list) -> torch.Tensor:
    return torch.cat([piece.tensors[0] for piece in sorted(pieces, key=lambda piece: piece.start)])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 100 bytes."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_way_to_say_out_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_the_cpu_allocator_really_says_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(archive: Archive, error: type[Exception]) -> None:
    prefix, sizer, metrics = small_device(archive, fits=4, error=error), sizer_of(), Metrics()
    batch = torch.arange(20.0)[:, None]
    pieces = run_batch(prefix, batch, sizer, metrics, Cancel())
    assert torch.equal(joined(pieces), batch * 2)
    assert prefix.sizes == [20, 10, 5, 2] + [2] * 9
    assert metrics.registry.get_sample_value("hapi_out_of_memory_total") == 3


def test_the_size_that_fitted_is_remembered_for_this_prefix_only(archive: Archive, wide_archive: Archive) -> None:
    prefix, sizer = small_device(archive, fits=4), sizer_of()
    assert sizer.size(prefix) == 32
    run_batch(prefix, torch.zeros(32, 1), sizer, Metrics(), Cancel())
    assert sizer.size(prefix) == 4
    assert sizer.size(small_device(wide_archive, fits=4)) == 32


def test_a_failed_pass_leaves_nothing_alive_for_the_next(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    run_batch(prefix, torch.zeros(4, 1), sizer_of(), Metrics(), Cancel())
    assert prefix.garbage
    assert not any(prefix.alive_at_start)


def test_one_sample_that_does_not_fit_is_refused(archive: Archive) -> None:
    prefix, sizer = small_device(archive, fits=0), sizer_of()
    with pytest.raises(MemoryBudgetError, match="with a single sample"):
        run_batch(prefix, torch.zeros(3, 1), sizer, Metrics(), Cancel())
    assert prefix.sizes == [3, 1]
    assert sizer.size(prefix) == 1, "a later try begins with one sample: memory may be free again"


def test_other_failures_are_not_retried(archive: Archive) -> None:
    prefix = small_device(archive, fits=0, error=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run_batch(prefix, torch.zeros(8, 1), sizer_of(), Metrics(), Cancel())
    assert prefix.sizes == [8]


def test_a_caller_that_left_stops_the_rest_of_the_batch(archive: Archive) -> None:
    cancel = Cancel()

    class LeavingDuringTheFirstPass(SmallDevice):
        def run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if len(batch) <= self.fits:
                cancel.set("the caller left")
            return super().run(batch)

    known = small_device(archive, fits=2)
    prefix = LeavingDuringTheFirstPass(**{name: getattr(known, name) for name in known.__dataclass_fields__})
    with pytest.raises(CancelledWork):
        run_batch(prefix, torch.zeros(8, 1), sizer_of(), Metrics(), cancel)
    assert prefix.sizes == [8, 4, 2], "one piece was computed, the other three were not"


def test_sizes_follow_the_memory_model(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=1000, lines=((100, 0),))
    budget = MemoryBudget("cpu", 1000 + 750, free=lambda device: 10**9)
    assert budget.take_weights(1000)
    assert BatchSizer(budget, 32).size(prefix) == 7
    assert BatchSizer(budget, 5).size(prefix) == 5


def test_a_prefix_that_can_never_fit_is_refused_with_the_numbers(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=3_000_000, lines=((2_000_000, 0),))
    with pytest.raises(MemoryBudgetError, match=r"3 MB for weights and 2 MB for .* may use 4 MB"):
        sizer_of(setting=4_000_000).admit(prefix)
    sizer_of(setting=5_000_000).admit(prefix)


def test_a_prefix_that_would_fit_in_an_idle_server_is_asked_to_come_back(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=0, lines=((2_000_000, 0),))
    budget = MemoryBudget("cpu", 4_000_000, free=lambda device: 10**9)
    assert budget.take_weights(3_000_000)
    with pytest.raises(BusyError, match="free at the moment"):
        BatchSizer(budget, 32).admit(prefix)
