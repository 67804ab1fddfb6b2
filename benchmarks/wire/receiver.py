"""Receives features as the loader does, and says what that took: one JSON document on standard output."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from compute_client.remote import RemoteJob, RemoteSource
from compute_client.restoring import Restorer
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from hapi.allocator import keep_freed_memory
from hapi.backoff import RetryPolicy
from hapi.cancel import Cancel
from hapi.data import describe_transform
from hapi.errors import HapiError
from hapi.model import capture, load_model
from hapi.plan import INPUT
from hapi.wire.protocol import DatasetSummary
from profiler.remote import ServerClient

SPAN_BYTES = 8 * 2**20
"""About so many bytes of features per request."""
MOST_SPAN = 256


def receive(
    server: str, data: str, model: str, weights: str, cut: str, codec: str, compression: str, in_flight: int,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Asks for all samples, and again for all, until `seconds` are over; at least once.

    A first pass is not counted, but for what `first_pass_*` say: whoever looks at the server from outside sees it, too.
    """
    stats = LoaderStats()
    with ServerClient(server) as client:
        dataset = client.register(data, refresh=False)
        if cut == INPUT:
            row_bytes = dataset.bytes // dataset.samples
            job = RemoteJob(dataset.digest, None, None, 0)
            fetch = _objects(client, job, stats)
        else:
            loaded = load_model(model, weights)
            graph = capture(loaded.backbone, loaded.example, name=loaded.name)
            client.ensure_model(graph)
            row_bytes = graph.cut(cut).bytes_per_sample
            transform = describe_transform(loaded.transform).to_json()
            job = RemoteJob(dataset.digest, graph.digest, transform, 0, codec, compression)
            fetch = _features(client, job, stats)
        size = max(1, min(SPAN_BYTES // row_bytes, MOST_SPAN))
        _passes(fetch, dataset, cut, size, in_flight, 0.0)  # imports, connections and memory are there afterwards
        before = stats.bytes_received
        begun, cpu = time.perf_counter(), time.process_time()
        samples = _passes(fetch, dataset, cut, size, in_flight, seconds)
        return {
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": time.process_time() - cpu,
            "samples": samples,
            "feature_bytes": samples * row_bytes,
            "bytes": stats.bytes_received - before,
            "first_pass_feature_bytes": dataset.samples * row_bytes,
            "first_pass_bytes": before,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _passes(
    fetch: Callable[[Span], None], dataset: DatasetSummary, cut: str, size: int, in_flight: int, seconds: float
) -> int:
    """Fetches spans with so many threads; the samples that arrived."""
    starts = list(range(0, dataset.samples, size))
    numbers, lock = count(), threading.Lock()
    deadline = time.perf_counter() + seconds
    done: list[int] = []

    def work() -> None:
        while True:
            with lock:
                number = next(numbers)
            if number >= len(starts) and time.perf_counter() >= deadline:
                return
            start = starts[number % len(starts)]
            span = Span(number, cut, 0, tuple(range(start, min(start + size, dataset.samples))))
            fetch(span)
            done.append(len(span))

    with ThreadPoolExecutor(in_flight) as pool:
        for future in [pool.submit(work) for _ in range(in_flight)]:
            future.result()
    return sum(done)


def _features(client: ServerClient, job: RemoteJob, stats: LoaderStats) -> Callable[[Span], None]:
    def restore(error: HapiError) -> None:
        raise error

    source = RemoteSource(
        client, job, retry=RetryPolicy(patience_seconds=30), restorer=Restorer(restore), decoder=None, stats=stats
    )

    def fetch(span: Span) -> None:
        stage = source.fetch(span, Cancel())
        if stage.errors:
            raise ValueError(f"a sample failed: {next(iter(stage.errors.values()))}")

    return fetch


def _objects(client: ServerClient, job: RemoteJob, stats: LoaderStats) -> Callable[[Span], None]:
    def fetch(span: Span) -> None:
        asked = job.request(span, list(span.indices))
        for _ in client.extract(asked, received=lambda size: stats.add(bytes_received=size)):
            pass

    return fetch


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("server", "data", "model", "weights", "cut", "codec", "compression"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    keep_freed_memory()
    try:
        json.dump(receive(**vars(parser.parse_args())), sys.stdout)
    except HapiError as error:
        json.dump({"error": {"kind": error.kind, "message": str(error)}}, sys.stdout)
        sys.exit(1)


if __name__ == "__main__":
    main()
