"""One request through all stages, without HTTP."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch
from awkward_models import SIZE, Archive
from gated_store import GatedStore

from hapi.cancel import CancelledWork
from hapi.data import Manifest, TransformSpec, build_manifest, load_sample, open_store, read_sample
from hapi.data.decoding import Processes
from hapi.errors import InputError, MemoryBudgetError, StoreUnavailableError
from hapi.model import Graph
from hapi.wire import FeatureBatch, read_stream
from storage_server.extraction.engine import Prefix
from storage_server.extraction.fitting import queued_bytes
from storage_server.extraction.loading import Source
from storage_server.extraction.pipeline import Extraction, Job
from storage_server.scheduling.fair import SERVER
from storage_server.service import Service

GOOD = 12
BROKEN = 12
"""Index of the sample that is no image."""


@pytest.fixture
def manifest(photos: Path) -> Manifest:
    return build_manifest(photos)


def gated(manifest: Manifest, **gate: object) -> GatedStore:
    return GatedStore(open_store(manifest.uri), **gate)  # type: ignore[arg-type]


def extraction(
    service: Service,
    manifest: Manifest,
    store: GatedStore,
    archive: Archive | None,
    transform: TransformSpec | None,
    cut: str = "output",
    indices: range | None = None,
    codec: str = "float32",
) -> Extraction:
    prefix = Prefix.of(archive.graph, cut, "cpu", archive.digest) if archive else None
    source = Source(manifest, store, transform if archive else None)
    return Extraction(Job(source, list(indices or range(len(manifest))), prefix, codec), service._stages)


def rows(batches: list[FeatureBatch]) -> dict[int, tuple]:
    """index -> (label, tensors or object, error)."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.indices):
            payload = batch.objects[row] if batch.objects is not None else tuple(t[row] for t in batch.tensors)
            assert int(index) not in found, "a sample came twice"
            found[int(index)] = (int(batch.labels[row]), payload, batch.errors.get(row))
    return found


def local_prefix(graph: Graph, cut: str, manifest: Manifest, transform: TransformSpec, index: int) -> tuple:
    store = open_store(manifest.uri)
    image = load_sample(read_sample(store, manifest.sample(index)), transform, index=index)
    with torch.inference_mode():
        return tuple(tensor[0] for tensor in graph.split(cut)[0](image[None]))


def test_every_cut_gives_what_the_prefix_gives_here(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    for cut in archive.graph.cuts[1:]:
        work = extraction(service, manifest, gated(manifest), archive, transform, cut.name)
        found = rows(list(read_stream(work.chunks())))
        assert sorted(found) == list(range(13))
        for index in range(GOOD):
            label, tensors, error = found[index]
            assert error is None
            assert label == manifest.sample(index).label
            expected = local_prefix(archive.graph, cut.name, manifest, transform, index)
            for got, wanted in zip(tensors, expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_one_bad_image_is_a_row_with_its_reason(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    found = rows(list(read_stream(extraction(service, manifest, gated(manifest), archive, transform).chunks())))
    _, tensors, error = found[BROKEN]
    assert "b/broken.jpg" in error
    assert "not an image" in error
    assert torch.count_nonzero(tensors[0]) == 0
    assert service.metrics.registry.get_sample_value("hapi_samples_total", {"outcome": "failed"}) == 1


def test_a_missing_object_is_a_row_too(
    service: Service, manifest: Manifest, tmp_path: Path, photos: Path, archive: Archive, transform: TransformSpec
) -> None:
    for path in photos.rglob("*.*"):
        if path.name != "3.png":
            copy = tmp_path / "copy" / path.relative_to(photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    store = GatedStore(open_store(tmp_path / "copy"))
    found = rows(list(read_stream(extraction(service, manifest, store, archive, transform).chunks())))
    assert {index for index, row in found.items() if row[2] and "does not exist" in row[2]} == {3, 9}


def test_the_input_cut_ships_stored_bytes_without_looking_at_them(service: Service, manifest: Manifest) -> None:
    store = gated(manifest)
    found = rows(list(read_stream(extraction(service, manifest, store, None, None).chunks())))
    for index in range(13):
        assert found[index][1] == read_sample(store, manifest.sample(index))
        assert found[index][2] is None


def test_a_store_that_is_down_ends_the_request(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    def down(key: str) -> None:
        raise StoreUnavailableError(f"{key}: the store did not answer")

    with pytest.raises(StoreUnavailableError):
        list(extraction(service, manifest, gated(manifest, on_read=down), archive, transform).chunks())


def test_a_transform_of_another_model_is_named(service: Service, manifest: Manifest, archive: Archive) -> None:
    small = TransformSpec.from_json(
        [
            {"name": "ToImage", "args": {}},
            {"name": "CenterCrop", "args": {"size": [8, 8]}},
            {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}},
        ]
    )
    with pytest.raises(InputError, match=rf"\(3, 8, 8\).*residual.*\(3, {SIZE}, {SIZE}\)|\(3, 8, 8\).*takes"):
        list(extraction(service, manifest, gated(manifest), archive, small).chunks())


def test_narrow_queues_still_bring_every_sample(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service()
    prefix = Prefix.of(archive.graph, "stem.2", "cpu", archive.digest)
    largest = max(manifest.sample(index).length for index in range(13)) + queued_bytes(prefix)
    service.queue.total_bytes = largest  # a request may then hold one sample at a time
    work = extraction(service, manifest, gated(manifest), archive, transform, "stem.2")
    assert sorted(rows(list(read_stream(work.chunks())))) == list(range(13))
    assert service.queue.used_bytes == 0
    batches = service.metrics.registry.get_sample_value
    assert batches("hapi_batch_samples_count") == batches("hapi_batch_samples_sum") == GOOD


def test_batches_are_no_larger_than_allowed(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(max_batch=4)
    list(extraction(service, manifest, gated(manifest), archive, transform, indices=range(GOOD)).chunks())
    value = service.metrics.registry.get_sample_value
    assert value("hapi_batch_samples_sum") == GOOD
    assert value("hapi_batch_samples_bucket", {"le": "4.0"}) == value("hapi_batch_samples_count") >= 3


def test_requests_for_different_prefixes_order_their_part_for_the_readers(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive
) -> None:
    stages = make_service(read_threads=8)._stages
    assert stages.reading_ahead == 16
    stem, whole = (Prefix.of(archive.graph, cut, "cpu", archive.digest) for cut in ("stem.2", "output"))
    with ExitStack() as running:
        for prefix, ahead in ((None, 16), (stem, 8), (stem, 8), (whole, 8)):
            work = Extraction(Job(Source(manifest, gated(manifest)), [0], prefix), stages)
            running.enter_context(stages.running.one(work))
            assert stages.reading_ahead == ahead


def test_answers_come_in_pieces_of_about_a_frame(
    make_service: Callable[..., Service], manifest: Manifest, wide_archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(frame_bytes=600_000)
    sample = wide_archive.graph.cut("wide").bytes_per_sample
    chunks = list(extraction(service, manifest, gated(manifest), wide_archive, transform, "wide").chunks())
    assert sample == 512 * SIZE * SIZE * 4
    assert len(chunks) >= 13 / 2
    assert max(map(len, chunks)) < 600_000 + sample
    assert sorted(rows(list(read_stream(chunks)))) == list(range(13))


def test_a_narrow_codec_is_cast_here(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    exact = rows(list(read_stream(extraction(service, manifest, gated(manifest), archive, transform).chunks())))
    work = extraction(service, manifest, gated(manifest), archive, transform, codec="bfloat16")
    narrow = rows(list(read_stream(work.chunks())))
    assert torch.equal(narrow[0][1][0], exact[0][1][0].bfloat16().float())


def wait_for_readers(service: Service) -> None:
    """Returns when everything that was ordered from the readers before has been done or dropped."""
    barrier = threading.Barrier(2 * service.loader.read_threads + 1)
    for _ in range(service.loader.read_threads):
        service.loader.readers.submit(SERVER, lambda: barrier.wait(60))
        service.loader.senders.submit(SERVER, lambda: barrier.wait(60))
    barrier.wait(60)


def drive(work: Extraction) -> tuple[threading.Thread, queue.SimpleQueue[object]]:
    """Runs it on a thread; the queue gets its chunks, then None or the exception that ended it."""
    results: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run() -> None:
        try:
            for chunk in work.chunks():
                results.put(chunk)
            results.put(None)
        except Exception as error:
            results.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_a_caller_that_left_costs_nothing_more(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(read_threads=2)
    store = gated(manifest, free=3)
    work = extraction(service, manifest, store, archive, transform)
    thread, results = drive(work)
    assert store.waiting.acquire(timeout=30)
    assert store.waiting.acquire(timeout=30)  # both readers hang in the store
    work.cancel.set("the caller left")
    thread.join(30)
    assert isinstance(results.get(), CancelledWork), "it ends at once, though reads hang"
    assert service.queue.used_bytes == 0
    store.open_gate()
    wait_for_readers(service)
    assert len(store.begun) == 5, "three that passed and two that hung; none of the other eight was begun"
    value = service.metrics.registry.get_sample_value
    assert value("hapi_batch_samples_count") == 0
    assert (value("hapi_stage_seconds_total", {"stage": "prefix"}) or 0) == 0


def test_what_is_sent_as_stored_does_not_wait_behind_what_is_to_be_decoded(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(read_threads=1)
    store = gated(manifest, free=0)
    slow = extraction(service, manifest, store, archive, transform)
    thread, _ = drive(slow)
    assert store.waiting.acquire(timeout=30)  # the reader hangs in the store, and others wait for it
    sent = extraction(service, manifest, gated(manifest), None, None)
    assert sum(len(batch) for batch in read_stream(sent.chunks())) == 13
    slow.cancel.set("the caller left")
    store.open_gate()
    thread.join(30)


def test_a_request_is_let_in_when_the_queues_have_room_for_it(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    prefix = Prefix.of(archive.graph, "output", "cpu", archive.digest)
    job = Job(Source(manifest, gated(manifest), transform), [0], prefix)
    let_in = threading.Event()
    work = Extraction(job, service._stages, let_in=let_in.set)
    with service.queue.joined(SERVER, service.queue.total_bytes, service.queue.total_bytes, work.cancel):
        thread, results = drive(work)
        assert not let_in.is_set()
    thread.join(30)
    assert let_in.is_set()
    assert isinstance(results.get(), bytes)


def test_batches_that_wait_for_the_device_are_dropped_when_the_caller_leaves(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(max_batch=2)
    held, release = threading.Event(), threading.Event()
    blocker = threading.Thread(target=service.device.call, args=(lambda: (held.set(), release.wait(60)),))
    blocker.start()
    assert held.wait(30)
    work = extraction(service, manifest, gated(manifest), archive, transform, indices=range(GOOD))
    thread, results = drive(work)
    deadline = threading.Event()
    while service.device.depth < 2:  # two batches of two wait for the device, the rest for them
        assert thread.is_alive()
        deadline.wait(0.001)
    work.cancel.set("the caller left")
    thread.join(30)
    assert isinstance(results.get(), CancelledWork)
    release.set()
    blocker.join(30)
    service.device.close()
    assert service.metrics.registry.get_sample_value("hapi_batch_samples_count") == 0


def test_closing_the_generator_cancels(service: Service, manifest: Manifest, photos: Path) -> None:
    work = extraction(service, manifest, gated(manifest), None, None)
    chunks = work.chunks()
    assert next(chunks)
    chunks.close()
    assert work.cancel.is_set
    assert service.queue.used_bytes == 0


def test_a_slow_caller_stops_the_reading(make_service: Callable[..., Service], manifest: Manifest) -> None:
    service = make_service(read_threads=8)
    store = gated(manifest)
    largest = max(manifest.sample(index).length for index in range(13))
    service.queue.total_bytes = 6 * largest  # half of it is kept for whoever comes next
    chunks = extraction(service, manifest, store, None, None).chunks()
    assert next(chunks)
    wait_for_readers(service)
    assert len(store.begun) < 10, "while nobody asks for the next piece, no more is read than the queues hold"
    chunks.close()


def test_one_sample_too_many_for_the_device_ends_the_request(
    service: Service, manifest: Manifest, archive: Archive, transform: TransformSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Prefix, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Prefix, "run", full)
    with pytest.raises(MemoryBudgetError):
        list(extraction(service, manifest, gated(manifest), archive, transform).chunks())
    assert service.queue.used_bytes == 0


def test_two_requests_at_once_do_not_mix(
    service: Service, manifest: Manifest, archive: Archive, wide_archive: Archive, transform: TransformSpec
) -> None:
    first = drive(extraction(service, manifest, gated(manifest), archive, transform))
    second = drive(extraction(service, manifest, gated(manifest), wide_archive, transform))
    for (thread, results), used in ((first, archive), (second, wide_archive)):
        thread.join(60)
        found = rows(list(read_stream(iter(results.get, None))))  # type: ignore[arg-type]
        expected = local_prefix(used.graph, "output", manifest, transform, 4)[0]
        torch.testing.assert_close(found[4][1][0], expected, rtol=1e-4, atol=1e-5)


def test_random_transforms_follow_seed_epoch_and_index_only(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive
) -> None:
    crop = TransformSpec.from_json(
        [
            {"name": "RandomCrop", "args": {"size": [SIZE, SIZE]}},
            {"name": "ToImage", "args": {}},
            {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}},
        ]
    )

    def features(service: Service, seed: int, epoch: int) -> np.ndarray:
        prefix = Prefix.of(archive.graph, "output", "cpu", archive.digest)
        source = Source(manifest, gated(manifest), crop, seed, epoch)
        work = Extraction(Job(source, range(GOOD), prefix), service._stages)
        found = rows(list(read_stream(work.chunks())))
        return np.stack([found[index][1][0].numpy() for index in range(GOOD)])

    one, other = make_service(workers=1), make_service(workers=4, max_batch=3)
    assert np.allclose(features(one, 1, 2), features(other, 1, 2), rtol=1e-4, atol=1e-5)
    assert not np.allclose(features(one, 1, 2), features(one, 1, 3), rtol=1e-2)
    with closing(Processes()) as processes:
        assert processes.wait(120)
        expected, one.loader.load = features(one, 1, 2), processes
        assert np.allclose(features(one, 1, 2), expected, rtol=1e-4, atol=1e-5), "rows that come later batch otherwise"


def test_processes_fetch_several_samples_at_once(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service(workers=2)
    prefix = Prefix.of(archive.graph, "output", "cpu", archive.digest)

    def found() -> dict[int, tuple]:
        source = Source(manifest, open_store(manifest.uri), transform)
        work = Extraction(Job(source, range(len(manifest)), prefix), service._stages)
        return rows(list(read_stream(work.chunks())))

    expected = found()
    with closing(Processes()) as processes:
        assert processes.wait(120)
        service.loader.load = processes
        fetched: list[int] = []
        fetch = service.loader.fetch
        service.loader.fetch = lambda source, indices, prefix: (  # type: ignore[method-assign]
            fetched.append(len(indices)) or fetch(source, indices, prefix)  # type: ignore[func-returns-value]
        )
        together = found()
        assert sum(fetched) == len(manifest)
        assert max(fetched) == len(manifest) // 4, "each thread is to have two turns"
    for index in range(GOOD):
        assert together[index][2] is None
        assert torch.allclose(together[index][1][0], expected[index][1][0], rtol=1e-4, atol=1e-5)
    assert together[BROKEN][2] == expected[BROKEN][2]
    value = service.metrics.registry.get_sample_value
    assert value("hapi_stage_errors_total", {"stage": "decode", "kind": "bad-image"}) == 2
    assert value("hapi_not_fetched_total") == 1, "the one that is no image"
    assert service.queue.used_bytes == 0
    assert not service._stages.flights._to_fetch


def test_what_fetching_fails_on_is_read_one_by_one(
    make_service: Callable[..., Service], manifest: Manifest, archive: Archive, transform: TransformSpec
) -> None:
    service = make_service()

    def failing(*_: object) -> list[None]:
        raise RuntimeError("no luck")

    service.loader.fetches, service.loader.fetch = (lambda *_: True), failing  # type: ignore[method-assign]
    found = rows(list(read_stream(extraction(service, manifest, gated(manifest), archive, transform).chunks())))
    assert [index for index in found if found[index][2]] == [BROKEN]


def test_large_samples_are_fetched_few_at_a_time(make_service: Callable[..., Service]) -> None:
    loader = make_service(workers=2).loader
    assert [loader.together(count, 600_000) for count in (1, 4, 15, 16, 1000)] == [1, 1, 3, 4, 8]
    assert [loader.together(1000, each) for each in (2**20, 3 * 2**20, 2**30)] == [8, 2, 1]
