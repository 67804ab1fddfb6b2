"""Many tenants with the same backbone: what several ask for is computed once, and whoever leaves harms nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from awkward_models import Archive
from gated_store import GatedStore

from hapi.cache import FeatureCache, FeatureKeys
from hapi.cancel import Cancel, CancelledWork
from hapi.data import Manifest, TransformSpec, build_manifest, load_sample, open_store, read_sample
from hapi.wire import read_stream
from storage_server.extraction.engine import Prefix
from storage_server.extraction.flight import Flight, Stage
from storage_server.extraction.inflight import Flights
from storage_server.extraction.loading import Source
from storage_server.extraction.mail import Ticket
from storage_server.extraction.pipeline import Extraction, Job
from storage_server.scheduling.deposits import Deposit
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.holding import QueueBytes
from storage_server.service import Service

MakeService = Callable[..., Service]
GOOD = 12
A = Flow("a")


class Tenants:
    """Requests of many tenants for the same samples, each driven by a thread of its own."""

    def __init__(self, service: Service, store: GatedStore, archive: Archive, transform: TransformSpec) -> None:
        self.service, self.store, self.archive, self.transform = service, store, archive, transform
        self.manifest = build_manifest(store.uri)
        self.results: dict[str, dict[int, torch.Tensor] | BaseException] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, indices: list[int], cut: str = "output") -> Extraction:
        prefix = Prefix.of(self.archive.graph, cut, "cpu", self.archive.digest)
        keys = FeatureKeys(
            self.manifest, self.transform, seed=0, epoch=0, model_digest=self.archive.digest, cut=prefix.cut.name
        )
        source = Source(self.manifest, self.store, self.transform)
        work = Extraction(Job(source, indices, prefix, flow=Flow(name), keys=keys), self.service._stages)
        self._threads.append(threading.Thread(target=self._drive, args=(name, work)))
        self._threads[-1].start()
        return work

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def expected(self, index: int) -> torch.Tensor:
        data = read_sample(open_store(self.manifest.uri), self.manifest.sample(index))
        with torch.inference_mode():
            return self.archive.graph.whole(load_sample(data, self.transform, index=index)[None])[0]  # type: ignore[index]

    def features_are_right(self, name: str, indices: list[int]) -> bool:
        found = self.results[name]
        assert isinstance(found, dict), found
        return sorted(found) == sorted(indices) and all(
            torch.allclose(found[index], self.expected(index), rtol=1e-4, atol=1e-5) for index in indices
        )

    def _drive(self, name: str, work: Extraction) -> None:
        try:
            self.results[name] = {
                int(index): batch.tensors[0][row]
                for batch in read_stream(work.chunks())
                for row, index in enumerate(batch.indices)
            }
        except BaseException as error:
            self.results[name] = error


def rows_computed(service: Service) -> float:
    return service.metrics.registry.get_sample_value("hapi_batch_samples_sum") or 0


@pytest.fixture
def store(photos: object) -> GatedStore:
    return GatedStore(open_store(str(photos)))


def test_twenty_tenants_have_each_sample_computed_once(
    make_service: MakeService, store: GatedStore, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service()
    tenants = Tenants(service, store, archive, transform)
    for number in range(20):
        tenants.ask(f"t{number}", list(range(GOOD)) if number % 2 else list(reversed(range(GOOD))))
    tenants.finish()
    assert rows_computed(service) == GOOD
    assert sorted(store.begun) == sorted(tenants.manifest.sample(index).key for index in range(GOOD))
    assert all(tenants.features_are_right(f"t{number}", list(range(GOOD))) for number in range(20))
    board = service.board.tenants()
    assert sum(record.samples for record in board.values()) == 20 * GOOD
    assert sum(record.shared for record in board.values()) == 19 * GOOD
    assert len(service.flights) == 0
    assert service.queue.used_bytes == 0


def test_without_a_cache_what_is_in_flight_is_still_shared(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(feature_cache_bytes=0)
    store = GatedStore(open_store(str(photos)), free=0)
    tenants = Tenants(service, store, archive, transform)
    works = [tenants.ask(f"t{number}", [0, 1]) for number in range(5)]
    wait_until(lambda: sum(len(work._tickets) for work in works) == 10)
    store.open_gate()
    tenants.finish()
    assert rows_computed(service) == 2
    tenants.ask("later", [0, 1])
    tenants.finish()
    assert rows_computed(service) == 4
    assert tenants.features_are_right("later", [0, 1])


def test_followers_go_on_when_the_leader_leaves(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(feature_cache_bytes=0)
    store = GatedStore(open_store(str(photos)), free=0)
    tenants = Tenants(service, store, archive, transform)
    indices = list(range(GOOD))
    leader = tenants.ask("leader", indices)
    wait_until(lambda: len(leader._tickets) == GOOD)
    follower = tenants.ask("follower", indices)
    wait_until(lambda: len(follower._tickets) == GOOD)
    leader.cancel.set("the caller left")
    wait_until(lambda: "leader" in tenants.results)
    store.open_gate()
    tenants.finish()
    assert isinstance(tenants.results["leader"], CancelledWork)
    assert tenants.features_are_right("follower", indices)
    assert rows_computed(service) == GOOD
    assert len(store.begun) == GOOD, "nothing was read twice"


def test_what_is_shared_is_held_once_and_handed_on(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(feature_cache_bytes=0)
    store = GatedStore(open_store(str(photos)), free=0)
    tenants = Tenants(service, store, archive, transform)
    leader = tenants.ask("leader", [0, 1])
    wait_until(lambda: len(leader._tickets) == 2)
    whole = service.queue.used_bytes - leader._encode_bytes
    follower = tenants.ask("follower", [0, 1])
    wait_until(lambda: len(follower._tickets) == 2)
    features = 2 * archive.graph.cut("output").bytes_per_sample
    assert whole > 3 * features
    assert service.queue.used_bytes == leader._encode_bytes + whole + follower._encode_bytes + features
    leader.cancel.set("the caller left")
    wait_until(lambda: "leader" in tenants.results)
    assert service.queue.used_bytes == follower._encode_bytes + whole
    store.open_gate()
    tenants.finish()
    assert tenants.features_are_right("follower", [0, 1])
    assert service.queue.used_bytes == 0


def test_requests_that_may_hold_one_sample_each_bring_about_many_together(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(feature_cache_bytes=0)
    store = GatedStore(open_store(str(photos)), free=0)
    manifest, indices = build_manifest(store.uri), list(range(GOOD))
    prefix = Prefix.of(archive.graph, "output", "cpu", archive.digest)
    keys = FeatureKeys(manifest, transform, seed=0, epoch=0, model_digest=archive.digest, cut="output").many(indices)
    queue_bytes, cancel = QueueBytes(1000), Cancel()
    with ExitStack() as joined:
        requests = [joined.enter_context(queue_bytes.joined(Flow(name), 100, 10_000, cancel)) for name in "abcde"]
        lines = [
            [Ticket(index, one.flow, cancel, lambda arrivals: None, Deposit(one, 100, 1)) for index in indices]
            for one in requests
        ]
        source = Source(manifest, store, transform)
        for number, line in enumerate(lines):
            arrivals, left = service.flights.join(line, source, prefix, keys)
            assert arrivals == []
            assert left == line[number + 1 :], "those that are there already, and one more"
        assert len(service.flights) == 5
        assert queue_bytes.used_bytes == 5 * 100 + (0 + 1 + 2 + 3 + 4) * 1
        for line in lines:
            for ticket in line:
                service.flights.leave(ticket)
    assert len(service.flights) == 0
    store.open_gate()


def test_what_is_kept_no_longer_when_it_is_read_leaves_nothing_held(
    make_service: MakeService, store: GatedStore, archive: Archive, transform: TransformSpec
) -> None:
    """They seemed to be kept, so that little was held for them; not all of them have room as a whole."""
    service = make_service()
    manifest, cancel = build_manifest(store.uri), Cancel()
    prefix = Prefix.of(archive.graph, "output", "cpu", archive.digest)
    names = [str(index).encode() for index in range(GOOD)]
    service.kept.put(names[0], (torch.zeros(4),))
    service.flights._kept = Forgetful(service.kept)
    queue_bytes = QueueBytes(100)
    with queue_bytes.joined(A, 100, 100, cancel) as holding:
        tickets = [Ticket(index, A, cancel, lambda arrivals: None, Deposit(holding, 40, 1)) for index in range(GOOD)]
        arrivals, left = service.flights.join(tickets, Source(manifest, store, transform), prefix, names)
        assert [arrival.index for arrival in arrivals] == [0]
        assert left == tickets[3:]
        assert holding.held == 1 + 2 * 40
        for ticket in tickets:
            service.flights.leave(ticket)


class Forgetful:
    """Says of everything that it is kept, and is right about what was kept before."""

    def __init__(self, kept: FeatureCache) -> None:
        self.get, self.fetch, self.put, self.where = kept.get, kept.fetch, kept.put, kept.where

    def __contains__(self, key: bytes) -> bool:
        return True


def test_half_of_the_tenants_vanish_and_the_others_notice_nothing(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service()
    store = GatedStore(open_store(str(photos)), free=3)
    tenants = Tenants(service, store, archive, transform)
    works = {number: tenants.ask(f"t{number}", list(range(GOOD))) for number in range(20)}
    wait_until(lambda: all(work._tickets for work in works.values()))
    for number in range(0, 20, 2):
        works[number].cancel.set("killed")
    store.open_gate()
    tenants.finish()
    assert all(isinstance(tenants.results[f"t{number}"], CancelledWork) for number in range(0, 20, 2))
    assert all(tenants.features_are_right(f"t{number}", list(range(GOOD))) for number in range(1, 20, 2))
    assert rows_computed(service) == GOOD
    assert service.queue.used_bytes == 0
    assert len(service.flights) == 0
    assert service.device.depth == 0


def test_when_all_vanish_nothing_more_is_read_or_computed(
    make_service: MakeService, photos: object, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(read_threads=2)
    store = GatedStore(open_store(str(photos)), free=0)
    tenants = Tenants(service, store, archive, transform)
    works = [tenants.ask(f"t{number}", list(range(GOOD))) for number in range(6)]
    assert store.waiting.acquire(timeout=30)
    assert store.waiting.acquire(timeout=30)
    wait_until(lambda: all(work._tickets for work in works))
    for work in works:
        work.cancel.set("killed")
    tenants.finish()
    store.open_gate()
    service.loader.close()
    assert len(store.begun) == 2, "those that hung in the store"
    assert rows_computed(service) == 0
    assert (len(service.flights), service.queue.used_bytes, service.device.depth) == (0, 0, 0)


@pytest.mark.parametrize("stage", ["read", "decode", "prefix", "encode"])
@pytest.mark.parametrize("error", [MemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_in_any_stage_costs_only_time(
    make_service: MakeService,
    store: GatedStore,
    archive: Archive,
    transform: TransformSpec,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: Callable[[], BaseException],
) -> None:
    """The first three tries of each stage fail."""
    places = {
        "read": "storage_server.extraction.loading.read_sample",
        "decode": "hapi.data.decoding.processes.load_sample",
        "prefix": "storage_server.extraction.engine.Prefix.run",
        "encode": "hapi.wire.stream.StreamEncoder.encode_parts",
    }
    failures = queue.SimpleQueue[BaseException]()
    for _ in range(3):
        failures.put(error())
    module_name, _, name = places[stage].rpartition(".")
    owner = resolve(module_name)
    real = getattr(owner, name)

    def short(*args: object, **kwargs: object) -> object:
        if not failures.empty():
            raise failures.get()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, short)
    service = make_service()
    tenants = Tenants(service, store, archive, transform)
    tenants.ask("a", list(range(GOOD)))
    tenants.finish()
    assert failures.empty()
    assert tenants.features_are_right("a", list(range(GOOD)))


def resolve(path: str) -> object:
    """The module or class at a dotted path."""
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once another thread has made it so."""
    turn = threading.Event()
    for _ in range(60_000):
        if condition():
            return
        turn.wait(0.001)
    pytest.fail("it never came to that")


def test_manifests_are_the_same(store: GatedStore, photos: object) -> None:
    """The tests above rely on it: equal objects have equal keys, whoever lists them."""
    one, other = build_manifest(store.uri), build_manifest(str(photos))
    assert isinstance(one, Manifest)
    assert one.digest == other.digest


def test_the_last_who_leaves_as_decoding_begins_is_no_trouble(
    make_service: MakeService,
    store: GatedStore,
    archive: Archive,
    transform: TransformSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claim = Flights._claim

    def claimed(self: Flights, flight: Flight, before: Stage, after: Stage) -> bool:
        is_mine = claim(self, flight, before, after)
        if after is Stage.DECODING:
            for ticket in tuple(flight.tickets):
                self.leave(ticket)
                ticket.cancel.set("left")
        return is_mine

    monkeypatch.setattr(Flights, "_claim", claimed)
    service = make_service()
    tenants = Tenants(service, store, archive, transform)
    tenants.ask("a", [0])
    tenants.finish()
    assert isinstance(tenants.results["a"], CancelledWork)
    service.loader.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
