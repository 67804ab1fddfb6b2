"""What the server counts, under Prometheus names. Each app has its own registry, so that several can live together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server. Thread-safe; labels are few: stages, outcomes, error kinds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and status", "route", "status")
        self.extracts = self._counter("extracts", "Extract requests by how they ended", "outcome")
        self.request_seconds = self._histogram("extract_seconds", "Seconds of one extract request", SECONDS_BUCKETS)
        self.samples = self._counter("samples", "Samples that were sent, by outcome", "outcome")
        self.received_bytes = self._counter("object_bytes", "Bytes read from object stores")
        self.sent_bytes = self._counter("sent_bytes", "Bytes of answers to extract requests")
        self.stage_seconds = self._counter("stage_seconds", "Seconds of work, summed over threads", "stage")
        self.stage_errors = self._counter("stage_errors", "Samples that failed", "stage", "kind")
        self.batch_size = self._histogram("batch_samples", "Samples in one pass of a prefix", BATCH_BUCKETS)
        self.out_of_memory = self._counter("out_of_memory", "Batches halved after running out of memory")
        self.short_of_memory = self._counter("short_of_memory", "Work done again after running out of memory", "stage")
        self.memory_releases = self._gauge("memory_releases", "Batches before which kept memory was given back")
        self.cache_hits = self._gauge("feature_cache_hits", "Samples found in the cache of features")
        self.cache_bytes = self._gauge("feature_cache_bytes", "Bytes of features that are kept")
        self.not_fetched = self._counter("not_fetched", "Samples read and decoded here as no process could fetch them")
        self.continued = self._counter("feature_cache_continued", "Samples that began at a kept shallower cut")
        self.bucket_hits = self._gauge("feature_bucket_hits", "Samples found in the bucket of features")
        self.bucket_bytes = self._gauge("feature_bucket_bytes", "Bytes in the bucket of features, as last listed")
        self.bucket_failures = self._gauge("feature_bucket_failures", "Times that the bucket of features failed")
        self.bucket_dropped = self._gauge("feature_bucket_dropped", "Features that the bucket was too slow or full for")
        self.backlog_seconds = self._gauge("backlog_seconds", "Predicted seconds of all that runs or waits")
        self.active = self._gauge("requests_active", "Extract and profile requests that run")
        self.waiting = self._gauge("requests_waiting", "Extract and profile requests that wait for their turn")
        self.queue_depth = self._gauge("device_queue", "Samples and calls that wait for the device")
        self.queued_bytes = self._gauge("queued_bytes", "Bytes of samples and features between reading and sending")
        self.model_bytes = self._gauge("model_bytes", "Bytes promised to the weights of loaded models")
        self.budget_bytes = self._gauge("budget_bytes", "The memory budget")
        self.samples_done = 0
        self._lock = threading.Lock()

    def rows(self, outcome: str, count: int) -> None:
        """Counts `count` samples that were encoded, `ok` or `failed`."""
        self.samples.labels(outcome).inc(count)
        with self._lock:
            self.samples_done += count

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the stage `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).inc(time.perf_counter() - started)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hapi_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"hapi_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"hapi_{name}", text, buckets=buckets, registry=self.registry)
