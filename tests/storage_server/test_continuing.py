"""Deeper cuts are computed from kept features of shallower ones, where that is predicted to be faster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from awkward_models import Archive
from gated_store import GatedStore
from kept_features import GOOD, features, refuse

from hapi.cache import FeatureKeys
from hapi.cancel import CancelledWork
from hapi.data import TransformSpec, build_manifest, open_store
from hapi.model import Graph
from hapi.wire import read_stream
from storage_server.extraction.engine import Prefix
from storage_server.extraction.loading import SampleLoader, Source
from storage_server.extraction.pipeline import Extraction, Job
from storage_server.features.served import MOST, ServedCuts
from storage_server.features.starts import Start, starts_of
from storage_server.scheduling.fair import Flow
from storage_server.scheduling.rates import Rates
from storage_server.scheduling.remembered import Remembered
from storage_server.service import Service

MakeService = Callable[..., Service]
EXACT = {"engine": "eager", "max_batch": 1}
"""What one sample gives does not depend on those that it shares a batch with."""


class Says(Rates):
    """Rates that are told."""

    def __init__(self, seconds: dict[str, float]) -> None:
        super().__init__()
        self.told = seconds

    def seconds(self, key: tuple[str, ...]) -> float:
        return self.told.get(key[1], 0.001)


def computed(service: Service) -> dict[str, int]:
    """Samples computed so far, by cut or by part between cuts."""
    return {record.cut: record.samples for record in service.board.prefixes().values() if record.samples}


def continued(service: Service) -> float:
    return service.metrics.registry.get_sample_value("hapi_feature_cache_continued_total") or 0


@pytest.fixture
def direct(
    make_service: MakeService, photos: Path, archive: Archive, transform: TransformSpec, tmp_path: Path
) -> list[torch.Tensor]:
    """The features at `add` and at `output`, each by the whole way."""
    settings = {**EXACT, "feature_cache_bytes": 0, "cache_dir": tmp_path / "direct"}
    return features(make_service(**settings), photos, archive, transform, ["add", "output"])


def test_a_deeper_cut_begins_at_a_shallower_one_and_is_the_same_to_the_last_bit(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    direct: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**EXACT, "feature_disk_bytes": "10MB"}
    first = make_service(**settings)
    features(first, photos, archive, transform, ["stem"])
    monkeypatch.setattr(SampleLoader, "read", refuse)
    again = make_service(**settings)  # another server over the same folder: cuts and features outlived the first
    assert all(map(torch.equal, features(again, photos, archive, transform, ["add", "output"]), direct))
    assert computed(again) == {"stem > add": len(GOOD), "add > output": len(GOOD)}, "the deepest there is"
    assert continued(again) == 2 * len(GOOD)
    assert again.queue.used_bytes == 0
    assert again.device.depth == 0
    record = next(record for key, record in again.board.prefixes().items() if key[1] == "stem > add")
    assert record.predicted_peak_bytes > record.weight_bytes > 0
    assert again.remembered.get(f"{archive.digest}/stem > add/cpu/eager") is None
    assert record.measured_peak_bytes is None or record.measured_peak_bytes >= record.weight_bytes


@pytest.mark.parametrize(
    ("seconds", "parts"), [({"stem > add": 1.0}, {"stem", "add"}), ({"add": 1.0}, {"stem", "stem > add"})]
)
def test_only_what_is_predicted_to_be_faster_is_done(
    make_service: MakeService,
    photos: Path,
    archive: Archive,
    transform: TransformSpec,
    seconds: dict[str, float],
    parts: set[str],
) -> None:
    service = make_service(rates=Says(seconds))
    features(service, photos, archive, transform, ["stem", "add"])
    assert computed(service).keys() == parts


def test_other_variants_are_not_begun_at(
    make_service: MakeService, photos: Path, archive: Archive, wide_archive: Archive, transform: TransformSpec
) -> None:
    """Another transform, and another model: their features have other keys."""
    other = TransformSpec.from_json([*transform.to_json(), transform.to_json()[-1]])
    features(make_service(feature_disk_bytes="10MB"), photos, archive, transform, ["stem"])
    for model, variant, cut, count in (
        (archive, other, "add", 0),
        (wide_archive, transform, "output", 0),
        (archive, transform, "add", len(GOOD)),
    ):
        service = make_service(feature_disk_bytes="10MB")
        features(service, photos, model, variant, [cut])
        assert continued(service) == count


class Asking:
    """Requests at `output` that may begin at `stem`, of a service that keeps what lies there."""

    def __init__(self, service: Service, photos: Path, archive: Archive, transform: TransformSpec) -> None:
        self.service, self.manifest = service, build_manifest(photos)
        self.store = GatedStore(open_store(str(photos)))
        self.archive, self.transform = archive, transform

    def keys(self, cut: str) -> FeatureKeys:
        return FeatureKeys(
            self.manifest, self.transform, seed=0, epoch=0, model_digest=self.archive.digest, cut=cut
        )  # fmt: skip

    def start(self) -> Start:
        graph, digest = self.archive.graph, self.archive.digest
        return Start(Prefix.between(graph, "stem", "output", "cpu", digest), self.keys("stem"))

    def ask(self, cut: str, *starts: Start, name: str = "a", indices: list[int] = GOOD) -> Extraction:
        prefix = Prefix.of(self.archive.graph, cut, "cpu", self.archive.digest)
        source = Source(self.manifest, self.store, self.transform)
        job = Job(source, indices, prefix, flow=Flow(name), keys=self.keys(cut), starts=starts)
        return Extraction(job, self.service._stages)

    def get(self, work: Extraction) -> torch.Tensor:
        found = {
            int(index): batch.tensors[0][row]
            for batch in read_stream(work.chunks())
            for row, index in enumerate(batch.indices)
        }
        return torch.stack([found[index] for index in sorted(found)])


@pytest.fixture
def asking(make_service: MakeService, photos: Path, archive: Archive, transform: TransformSpec) -> Asking:
    asking = Asking(make_service(rates=Says({"output": 1.0}), **EXACT), photos, archive, transform)
    asking.get(asking.ask("stem"))
    asking.store.begun.clear()
    return asking


def test_several_who_want_it_have_it_computed_once(asking: Asking, direct: list[torch.Tensor]) -> None:
    results: list[torch.Tensor] = []
    start = asking.start()
    held, release = threading.Event(), threading.Event()
    blocker = threading.Thread(target=asking.service.device.call, args=(lambda: (held.set(), release.wait(60)),))
    blocker.start()
    assert held.wait(30)
    works = [asking.ask("output", start, name=f"t{number}") for number in range(5)]
    threads = [threading.Thread(target=lambda work=work: results.append(asking.get(work))) for work in works]
    for thread in threads:
        thread.start()
    turn = threading.Event()
    while not all(work._tickets for work in works):
        turn.wait(0.001)
    release.set()
    for thread in [*threads, blocker]:
        thread.join(60)
    assert len(results) == 5
    assert all(torch.equal(result, direct[1]) for result in results)
    assert computed(asking.service) == {"stem": len(GOOD), "stem > output": len(GOOD)}
    assert asking.store.begun == []
    assert (len(asking.service.flights), asking.service.queue.used_bytes, asking.service.device.depth) == (0, 0, 0)


def test_what_is_gone_after_all_goes_the_whole_way(
    asking: Asking, direct: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = asking.service.kept.fetch
    lost = {asking.keys("stem").of(index) for index in GOOD[::2]}
    monkeypatch.setattr(asking.service.kept, "fetch", lambda key: None if key in lost else fetch(key))
    assert torch.equal(asking.get(asking.ask("output", asking.start())), direct[1])
    assert computed(asking.service) == {"stem": 12, "stem > output": 6, "output": 6}
    assert asking.service.device._lanes._lanes == {}, "nothing is expected any longer"


@pytest.mark.parametrize(
    "kept", [(torch.zeros(4, 16, 15),), (torch.zeros(4, 16, 16, dtype=torch.float64),), (), (torch.zeros(3),) * 2]
)
def test_what_is_not_what_it_should_be_is_not_begun_at(
    asking: Asking, direct: list[torch.Tensor], kept: tuple[torch.Tensor, ...]
) -> None:
    for index in GOOD:
        asking.service.kept.put(asking.keys("stem").of(index), kept)
    assert torch.equal(asking.get(asking.ask("output", asking.start())), direct[1])
    assert continued(asking.service) == 0


def test_running_out_of_memory_on_the_way_costs_only_time(
    asking: Asking, direct: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, run, failures = asking.service.kept.fetch, Prefix.run, [MemoryError()] * 2

    def short_fetch(key: bytes) -> object:
        if failures:
            raise failures.pop()
        return fetch(key)

    def short_run(self: Prefix, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if runs:
            raise runs.pop()
        return run(self, batch)

    runs = [MemoryError()]
    monkeypatch.setattr(asking.service.kept, "fetch", short_fetch)
    monkeypatch.setattr(Prefix, "run", short_run)
    assert torch.equal(asking.get(asking.ask("output", asking.start())), direct[1])
    assert not failures
    assert not runs
    assert computed(asking.service) == {"stem": 12, "stem > output": 10, "output": 2}


def test_a_caller_that_leaves_takes_its_samples_back(asking: Asking) -> None:
    work = asking.ask("output", asking.start())
    chunks = work.chunks()
    held, release = threading.Event(), threading.Event()
    blocker = threading.Thread(target=asking.service.device.call, args=(lambda: (held.set(), release.wait(60)),))
    blocker.start()
    assert held.wait(30)
    ends: list[BaseException] = []

    def drive() -> None:
        try:
            next(chunks)
        except CancelledWork as error:
            ends.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    turn = threading.Event()
    while not work._tickets:
        turn.wait(0.001)
    work.cancel.set("the caller left")
    thread.join(60)
    release.set()
    blocker.join(60)
    assert len(ends) == 1
    assert asking.service.queue.used_bytes == 0
    asking.service.loader.close()
    assert asking.service.device._lanes._lanes == {}


def test_a_sample_is_charged_for_the_larger_of_its_ways(asking: Asking) -> None:
    plain, continuing = asking.ask("output"), asking.ask("output", asking.start())
    shallow = asking.archive.graph.cut("stem").bytes_per_sample
    for index in GOOD:
        assert continuing._costs[index] == max(plain._costs[index], shallow + 20)


def test_only_cuts_that_carry_one_tensor_and_fit_are_begun_at(
    make_service: MakeService, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service()
    features(service, photos, archive, transform, ["stem"])
    service.remembered.put(f"cuts/{archive.digest}", ["nowhere", 7, "input", "output", "stem", "add"])
    with service.models.lease(archive.digest) as lease:
        prefix = lease.prefix("pool")

        def starts(queue_bytes: int) -> list[str]:
            found = service._served.of(archive.digest)
            return [start.part.key[1] for start in starts_of(lease, prefix, found, lambda cut: cut, queue_bytes)]  # type: ignore[arg-type,return-value]

        assert starts(10**6) == ["add > pool", "stem > pool"]
        assert starts(4096) == []
        assert lease.part("stem", "pool") is lease.part("stem", "pool")
        assert lease.part("stem", "pool").what.endswith("stem > pool")


def test_served_cuts_are_few_and_outlive_the_server(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path / "learned.json")
    served = ServedCuts(remembered)
    assert served.of("m") == []
    for number in range(MOST + 3):
        served.note("m", f"layer{number}")
        served.note("m", f"layer{number}")
    remembered.save()
    again = ServedCuts(Remembered(tmp_path / "learned.json"))
    assert again.of("m") == [f"layer{number}" for number in range(MOST + 2, 2, -1)]
    for nonsense in ("text", {"a": 1}, [1, None]):
        remembered.put("cuts/m", nonsense)
        assert served.of("m") == []


def test_a_part_is_the_graph_between(archive: Archive) -> None:
    graph: Graph = archive.graph
    part, whole = Prefix.between(graph, "stem", "add", "cpu", "d"), Prefix.of(graph, "add", "cpu", "d")
    shallow = Prefix.of(graph, "stem", "cpu", "d")
    batch = torch.randn(3, 3, 16, 16)
    assert torch.equal(part.run(shallow.run(batch)[0])[0], whole.run(batch)[0])
    assert part.key != whole.key
    assert part.memory.weight_bytes < whole.memory.weight_bytes
    assert 0 < part.flops < whole.flops
