"""Batches through a prefix: sizes, and what happens when memory runs out all the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from awkward_models import Archive

from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BusyError, MemoryBudgetError
from profiler.memory import MemoryModel
from storage_server.extraction import batching
from storage_server.extraction.batching import Batches
from storage_server.extraction.engine import Prefix
from storage_server.extraction.fitting import check_fits, with_remedy
from storage_server.extraction.mail import Arrival, Letter, Ticket
from storage_server.extraction.patience import ATTEMPTS, Patience
from storage_server.extraction.rows import Batch, Row
from storage_server.extraction.sizing import RECOVER_AFTER, KneePolicy, Waiting
from storage_server.memory.budget import MemoryBudget
from storage_server.metrics import Metrics
from storage_server.scheduling.deposits import Deposit
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.holding import Holding, QueueBytes
from storage_server.scheduling.rates import Rates
from storage_server.status import Board

A = Flow("a")


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


def policy_of(setting: int = 10**9, max_batch: int = 32) -> KneePolicy:
    return KneePolicy(MemoryBudget("cpu", setting, free=lambda device: 10**12), max_batch)


class Machine:
    """Runs batches at once, in this thread, and keeps what became of each row."""

    def __init__(self, policy: KneePolicy | None = None) -> None:
        self.metrics, self.board, self.rates = Metrics(), Board(), Rates()
        self.policy = policy or policy_of()
        self.pauses: list[float] = []
        patience = Patience("cpu", self.metrics, self.pauses.append)
        self.batches = Batches(self.policy, self.rates, self.board, self.metrics, patience, lambda work: work())
        self.outcomes: dict[int, Any] = {}
        self.posts: list[list[Arrival]] = []

    def run(self, prefix: Prefix, rows: int, wanted: Callable[[int], bool] = lambda number: True) -> None:
        def deliver(number: int) -> Callable[[Any], list[Letter]]:
            def told(outcome: Any) -> list[Letter]:
                self.outcomes[number] = outcome
                return [(ticket, Arrival(number))]

            return told

        ticket = Ticket(0, A, Cancel(), self.posts.append, Deposit(Holding(QueueBytes(1), A, 1, 1), 1, 1))
        made = [
            Row(prefix, torch.tensor([float(number)]), {A}, lambda number=number: wanted(number), deliver(number))  # type: ignore[misc]
            for number in range(rows)
        ]
        self.batches.run(Batch(prefix, made, 0.0))

    def are_doubled(self, rows: int) -> bool:
        return all(torch.equal(self.outcomes[number][0], torch.tensor([2.0 * number])) for number in range(rows))


def test_a_request_is_told_of_a_whole_batch_at_once(archive: Archive) -> None:
    machine = Machine()
    machine.run(small_device(archive, fits=8), 8)
    assert [[arrival.index for arrival in post] for post in machine.posts] == [list(range(8))]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(archive: Archive, error: type[Exception]) -> None:
    prefix, machine = small_device(archive, fits=4, error=error), Machine()
    machine.run(prefix, 20)
    assert machine.are_doubled(20)
    assert prefix.sizes == [20, 8, 4, 4, 4, 4, 4]
    assert machine.metrics.registry.get_sample_value("hapi_out_of_memory_total") == 2
    assert machine.board.prefixes()[prefix.key].out_of_memory == 2


def test_the_size_that_fitted_is_remembered_for_this_prefix_only(archive: Archive, wide_archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=2), Machine()
    machine.run(prefix, 32)
    decision = machine.policy.decide(prefix, [])
    assert (decision.samples, decision.reason) == (2, "recovering")
    assert machine.policy.decide(small_device(wide_archive, fits=4), []).samples == 4


def test_after_many_good_batches_a_size_twice_as_large_is_tried(archive: Archive) -> None:
    prefix, policy = small_device(archive, fits=4), policy_of(max_batch=8)
    assert policy.failed(prefix, 4) == 2
    for _ in range(RECOVER_AFTER):
        assert policy.decide(prefix, []).samples <= 2
        policy.succeeded(prefix, 2, 1.0)
    assert policy.decide(prefix, []).samples == 4
    policy.failed(prefix, 4)
    for _ in range(RECOVER_AFTER):
        policy.succeeded(prefix, 2, 1.0)
    assert policy.decide(prefix, []).samples == 2, "the second time it takes twice as long"


def test_a_failed_pass_leaves_nothing_alive_for_the_next(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    Machine().run(prefix, 4)
    assert prefix.garbage
    assert not any(prefix.alive_at_start)


def test_one_sample_that_does_not_fit_is_refused_after_waiting(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=0), Machine()
    machine.run(prefix, 2)
    assert all(isinstance(machine.outcomes[number], MemoryBudgetError) for number in range(2))
    assert prefix.sizes == [2] + [1] * 2 * ATTEMPTS
    assert machine.pauses[1] == 2 * machine.pauses[0]


def test_memory_that_comes_back_costs_a_single_sample_only_time(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=0), Machine()

    def recovered(seconds: float) -> None:
        prefix.fits = 1

    machine.batches._patience._pause = recovered
    machine.run(prefix, 1)
    assert machine.are_doubled(1)


def test_other_failures_are_not_retried(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=0, error=ZeroDivisionError), Machine()
    machine.run(prefix, 8)
    assert prefix.sizes == [8]
    assert all(isinstance(outcome, ZeroDivisionError) for outcome in machine.outcomes.values())


def test_rows_that_nobody_wants_any_longer_are_left_out_of_the_rest(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=2), Machine()
    machine.run(prefix, 8, wanted=lambda number: number < 3 or len(prefix.sizes) < 2)
    assert prefix.sizes == [8, 4, 2, 1]
    assert isinstance(machine.outcomes[7], CancelledWork)


def test_rows_do_not_keep_their_batch_alive(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=32), Machine()
    machine.run(prefix, 32)
    assert machine.outcomes[3][0].untyped_storage().nbytes() == machine.outcomes[3][0].nbytes


def test_running_out_while_rows_are_stacked_is_the_same(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = torch.stack

    def narrow(rows: list[torch.Tensor]) -> torch.Tensor:
        if len(rows) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return stack(rows)

    monkeypatch.setattr(torch, "stack", narrow)
    prefix, machine = small_device(archive, fits=32), Machine()
    machine.run(prefix, 10)
    assert machine.are_doubled(10)
    assert max(prefix.sizes) == 2


def test_sizes_follow_the_memory_model_and_say_so(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=1000, lines=((100, 0),))
    budget = MemoryBudget("cpu", 1000 + 350, free=lambda device: 10**9)
    assert budget.take_weights(1000)
    decision = KneePolicy(budget, 32).decide(prefix, [])
    assert (decision.samples, decision.reason) == (2, "memory")
    assert KneePolicy(MemoryBudget("cpu", free=lambda device: 10**9), 2).decide(prefix, []).reason == "limit"


def test_sizes_follow_what_the_requests_may_have_on_their_way(archive: Archive) -> None:
    prefix, policy = small_device(archive, fits=1), policy_of()
    one = Waiting("a", prefix, 1000, sample_bytes=100, share_bytes=600)
    assert policy.decide(prefix, [one]).samples == 2
    assert policy.decide(prefix, [one]).reason == "share"
    assert policy.decide(prefix, [one, one]).samples == 4, "requests for the same prefix fill batches together"


def test_every_request_has_one_sample_on_its_way_however_small_its_part(archive: Archive) -> None:
    prefix, policy = small_device(archive, fits=1), policy_of()
    many = [Waiting(str(number), prefix, 1000, sample_bytes=100, share_bytes=60) for number in range(4)]
    assert policy.decide(prefix, many).samples == 2


def test_a_prefix_that_takes_turns_with_others_needs_less_on_its_way(archive: Archive) -> None:
    prefix, policy = small_device(archive, fits=1), policy_of()
    many = [replace(prefix, key=("digest", f"cut {number}")) for number in range(3)]
    waiting = [Waiting(str(number), one, 1000, 100, share_bytes=400) for number, one in enumerate(many)]
    assert policy.decide(many[0], waiting[:2]).samples == 2
    assert policy.decide(many[0], waiting).samples == 4


def test_a_prefix_that_can_never_fit_is_refused_with_the_numbers(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=3_000_000, lines=((2_000_000, 0),))
    small, large = (MemoryBudget("cpu", setting, free=lambda device: 10**12) for setting in (4_000_000, 5_000_000))
    with pytest.raises(MemoryBudgetError, match=r"3 MB for weights and 2 MB for .* may use 4 MB") as caught:
        check_fits(prefix, small, 10**9)
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (5_000_000, 4_000_000)
    check_fits(prefix, large, 10**9)
    with pytest.raises(MemoryBudgetError, match="between reading and sending"):
        check_fits(prefix, large, 100)


def test_what_would_fit_is_named(wide_archive: Archive) -> None:
    """The wide layer takes half a megabyte per sample, and so do the cuts after it: none but `input` is smaller."""
    graph, error = wide_archive.graph, MemoryBudgetError("too large.", needed_bytes=10)
    whole = Prefix.of(graph, "output", "cpu", wide_archive.digest).memory.predicted(1)
    fitting = with_remedy(error, graph, MemoryBudget("cpu", whole, free=lambda device: 10**12), 10**9)
    assert (fitting.fits, fitting.fits_bytes) == ("output", whole)
    narrow_queue = with_remedy(error, graph, MemoryBudget("cpu", whole, free=lambda device: 10**12), 1000)
    assert narrow_queue.fits is None
    assert "No cut" in str(narrow_queue)


def test_a_prefix_that_would_fit_in_an_idle_server_is_asked_to_come_back(archive: Archive) -> None:
    prefix = small_device(archive, fits=1)
    prefix.memory = MemoryModel(weight_bytes=0, lines=((2_000_000, 0),))
    budget = MemoryBudget("cpu", 4_000_000, free=lambda device: 10**9)
    assert budget.take_weights(3_000_000)
    with pytest.raises(BusyError, match="free at the moment"):
        check_fits(prefix, budget, 10**9)


def test_a_small_batch_between_others_is_tried_once_and_is_whole_for_later(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=1), Machine()
    outcomes: dict[int, Any] = {}

    def deliver(number: int, outcome: Any) -> list[Letter]:
        outcomes[number] = outcome
        return []

    rows = [
        Row(
            prefix,
            torch.tensor([float(number)]),
            {A},
            lambda number=number: number != 1,
            partial(deliver, number),
        )  # type: ignore[misc]
        for number in range(3)
    ]
    batch = Batch(prefix, rows, 0.0)
    assert not machine.batches.run_between(batch)
    assert outcomes == {}
    assert (prefix.sizes, machine.pauses) == ([2], [])
    prefix.fits = 2
    assert machine.batches.run_between(batch)
    assert isinstance(outcomes[1], CancelledWork)
    assert all(torch.equal(outcomes[number][0], torch.tensor([2.0 * number])) for number in (0, 2))
    assert machine.policy.decide(prefix, []).reason != "recovering", "the size is not to blame"


def test_small_batches_beside_larger_ones_teach_nothing_of_sizes(archive: Archive) -> None:
    prefix, machine = small_device(archive, fits=8), Machine()
    learned: list[int] = []
    machine.policy.succeeded = lambda prefix, samples, seconds: learned.append(samples)  # type: ignore[method-assign]

    def rows(count: int) -> list[Row]:
        return [Row(prefix, torch.zeros(1), {A}, lambda: True, lambda outcome: []) for _ in range(count)]

    machine.batches.run(Batch(prefix, rows(1), 0.0, is_small=True))
    assert machine.batches.run_between(Batch(prefix, rows(2), 0.0))
    machine.batches.run(Batch(prefix, rows(4), 0.0))
    assert learned == [4]


def test_sizes_are_learned_from_the_processor_s_time(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that decode beside it take a part of the processor: a small batch may come through without one of them,
    and would seem to be as fast as a larger one."""
    wall, processor = iter([1.0, 3.0]), iter([10.0, 10.5])
    monkeypatch.setattr(batching, "working_seconds", lambda: next(wall))
    monkeypatch.setattr(batching, "processor_seconds", lambda: next(processor))
    prefix, machine = small_device(archive, fits=8), Machine()
    learned: list[float] = []
    machine.policy.succeeded = lambda prefix, samples, seconds: learned.append(seconds)  # type: ignore[method-assign]
    machine.batches.run(Batch(prefix, [Row(prefix, torch.zeros(1), {A}, lambda: True, lambda outcome: [])], 0.0))
    assert learned == [0.5]
    assert machine.rates.seconds(prefix.key) == 2.0
