"""Small batches between the operations of a large one: whose turn it is, how many, who pays, and no memory for them."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Sequence

import pytest
import torch
from awkward_models import Archive

from hapi.model.pauses import pausing
from profiler.memory import MemoryModel
from storage_server.extraction.engine import Prefix
from storage_server.extraction.executor import DeviceExecutor
from storage_server.extraction.guests import Guests
from storage_server.extraction.lanes import Lanes
from storage_server.extraction.rows import Batch, Row
from storage_server.extraction.sizing import Decision, Waiting
from storage_server.memory.workspaces import Workspaces
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.rates import Rates

LARGE, SMALL, OTHER = Flow("large"), Flow("small"), Flow("other")
ROW_SECONDS, SIZE = 0.1, 8


class Fixed:
    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        return Decision(SIZE, "limit")

    def failed(self, prefix: Prefix, samples: int) -> int:
        return samples // 2

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        pass


@pytest.fixture(autouse=True)
def whole_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of a host are one batch, though no more are on their way."""
    monkeypatch.setattr("storage_server.extraction.lanes.LAST_SECONDS", math.inf)


@pytest.fixture(scope="module")
def prefixes(archive: Archive) -> tuple[Prefix, Prefix]:
    return tuple(Prefix.of(archive.graph, cut, "cpu", archive.digest) for cut in ("stem.2", "output"))  # type: ignore[return-value]


def row(prefix: Prefix, flow: Flow) -> Row:
    return Row(prefix, torch.zeros(1), {flow}, lambda: True, lambda outcome: [])


def lanes_of(prefixes: Sequence[Prefix], *requests: Waiting) -> Lanes:
    rates = Rates()
    for prefix in prefixes:
        rates.learned(prefix.key, 1, ROW_SECONDS)
    return Lanes(Fixed(), rates, lambda: requests, clock=lambda: 0.0)


def wanting(prefix: Prefix, **samples: int) -> list[Waiting]:
    return [Waiting(tenant, prefix, count, 1, count) for tenant, count in samples.items()]


def all_fit(prefix: Prefix, samples: int) -> bool:
    return True


def test_the_batch_of_who_wants_few_is_small_and_that_of_who_wants_many_is_not(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, *wanting(prefixes[0], large=100, small=2))
    for _ in range(2 * SIZE):
        lanes.add(row(prefixes[0], LARGE))
    host = lanes.next()
    assert isinstance(host, Batch)
    assert lanes.next_small(2 * ROW_SECONDS, all_fit) is None
    for _ in range(2):
        lanes.add(row(prefixes[0], SMALL))
    assert lanes.next_small(ROW_SECONDS, all_fit) is None, "two samples take longer"
    guest = lanes.next_small(2 * ROW_SECONDS, all_fit)
    assert guest is not None
    assert [one.flows for one in guest.rows] == [{SMALL}, {SMALL}]


def test_it_must_fit(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, *wanting(prefixes[0], large=100, small=1))
    lanes.add(row(prefixes[0], SMALL))
    asked: list[tuple[Prefix, int]] = []

    def fits(prefix: Prefix, samples: int) -> bool:
        asked.append((prefix, samples))
        return False

    assert lanes.next_small(ROW_SECONDS, fits) is None
    assert asked == [(prefixes[0], 1)]
    assert lanes.waiting[prefixes[0].key] == 1, "it waits on"


def test_a_short_batch_of_another_network_is_a_guest_too_but_only_whole(prefixes: Sequence[Prefix]) -> None:
    lanes = lanes_of(prefixes, *wanting(prefixes[0], large=100), *wanting(prefixes[1], small=3))
    for _ in range(3):
        lanes.add(row(prefixes[1], SMALL))
    assert lanes.next_small(2 * ROW_SECONDS, all_fit) is None
    guest = lanes.next_small(3 * ROW_SECONDS, all_fit)
    assert guest is not None
    assert len(guest.rows) == 3


class Device:
    """An executor of which a batch of the large job pauses as often as it is told."""

    def __init__(self, prefixes: Sequence[Prefix], lanes: Lanes, run: Callable[[Batch], bool]) -> None:
        self.done: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self.order: list[tuple[str, int]] = []
        self.begun: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.go_on: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.spent: dict[Flow, float] = {}
        self.short_pauses: list[bool] = []
        """Of batches of the others, whether they paused."""
        self._run = run
        guests = Guests(self._guest, lambda *batches: True)
        self.executor = DeviceExecutor(lanes, self._compute, on_spent=self.spent.update, guests=guests)

    def _compute(self, batch: Batch) -> None:
        from hapi.model.pauses import pause_of_thread

        if len(batch.rows) == SIZE:
            self.begun.put(None)
            self.go_on.get(timeout=30)
            pause = pause_of_thread()
            assert pause is not None
            pause()
        else:
            self.short_pauses.append(pause_of_thread() is not None)
        self.order.append(("batch", len(batch.rows)))
        self.done.put(batch)

    def _guest(self, batch: Batch) -> bool:
        is_done = self._run(batch)
        self.order.append(("guest" if is_done else "failed guest", len(batch.rows)))
        return is_done


def served(prefixes: Sequence[Prefix], small: Sequence[Flow], run: Callable[[Batch], bool]) -> Device:
    """A batch of the large job, during which one sample each of these comes."""
    prefix = prefixes[0]
    requests = wanting(prefix, large=100, **{flow.name: 1 for flow in small})
    device = Device(prefixes, lanes_of(prefixes, *requests), run)
    for _ in range(SIZE):
        device.executor.expect(prefix)
        device.executor.submit(row(prefix, LARGE))
    device.begun.get(timeout=30)
    for flow in small:
        device.executor.expect(prefix)
        device.executor.submit(row(prefix, flow))
    device.go_on.put(None)
    device.done.get(timeout=30)
    return device


def test_who_wants_few_is_served_in_the_middle_of_a_large_batch(prefixes: Sequence[Prefix]) -> None:
    device = served(prefixes, [SMALL], lambda batch: True)
    device.executor.close()
    assert device.order == [("guest", 1), ("batch", SIZE)]
    assert set(device.spent) == {LARGE, SMALL}


def test_a_quarter_of_the_batch_is_for_guests_and_the_rest_wait(prefixes: Sequence[Prefix]) -> None:
    flows = [Flow(f"small-{number}") for number in range(SIZE // 4 + 2)]
    device = served(prefixes, flows, lambda batch: True)
    assert len(device.done.get(timeout=30).rows) == 2, "those that were left, together"
    device.executor.close()
    assert device.order == [("guest", 2), ("batch", SIZE), ("batch", 2)]
    assert device.short_pauses == [False]


def test_a_guest_for_which_memory_was_too_short_is_next(prefixes: Sequence[Prefix]) -> None:
    device = served(prefixes, [SMALL, OTHER], lambda batch: False)
    device.done.get(timeout=30)
    device.executor.close()
    assert device.order == [("failed guest", 2), ("batch", SIZE), ("batch", 2)]


def test_an_error_in_a_guest_is_not_the_hosts(prefixes: Sequence[Prefix]) -> None:
    def run(batch: Batch) -> bool:
        raise ZeroDivisionError

    device = served(prefixes, [SMALL], run)
    device.executor.close()
    assert device.order == [("batch", SIZE)]


def test_batches_fit_together_if_their_sum_does(prefixes: Sequence[Prefix]) -> None:
    class Known:
        key = ("digest", "cut")
        engine = "eager"
        input = prefixes[0].input
        memory = MemoryModel(10**6, ((100, 0),))

    workspaces = Workspaces("cpu", room=lambda: 1000)
    assert workspaces.fit_together((Known(), 8), (Known(), 2)), "weights are there already"
    assert not workspaces.fit_together((Known(), 8), (Known(), 3))
    assert not Workspaces("cpu").fit_together((Known(), 1)), "nothing is known of the room"


def test_what_is_measured_is_not_paused(prefixes: Sequence[Prefix]) -> None:
    from hapi.model.pauses import pause_of_thread

    workspaces = Workspaces("cpu")
    seen = []
    with pausing(lambda: False):
        for _ in range(2):
            with workspaces.observing(prefixes[0], 1):
                seen.append(pause_of_thread() is None)
    assert seen == [True, False]
