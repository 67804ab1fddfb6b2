"""From stored bytes to input tensors: reading and decoding, each on its own threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hapi.cancel import Cancel
from hapi.data import Manifest, ObjectStore, Sample, TransformSpec, load_sample, read_sample
from hapi.errors import HapiError, StoreUnavailableError
from storage_server.extraction.threads import WorkerThreads
from storage_server.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the samples of one request come from, and what is made of them; no transform: bytes as they are stored."""

    manifest: Manifest
    store: ObjectStore
    transform: TransformSpec | None = None
    seed: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Loaded:
    """One sample that was read, or why not.

    `failed` is this sample's own trouble, and becomes its row's `error`; `error` is trouble that ends the request.
    """

    index: int
    tensor: torch.Tensor | None = None
    data: bytes | None = None
    failed: str | None = None
    error: BaseException | None = None


Deliver = Callable[[Loaded], Any]


class SampleLoader:
    """Threads that read and threads that decode, shared by all requests. Requests bound what they ask for."""

    def __init__(self, read_threads: int, workers: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._readers = WorkerThreads(read_threads, "hapi-read")
        self._workers = WorkerThreads(workers, "hapi-decode", _one_thread)
        self.read_threads = read_threads

    def load(self, source: Source, index: int, cancel: Cancel, deliver: Deliver) -> None:
        """Reads sample `index` and calls `deliver` from another thread; never, once the request is cancelled."""
        self._readers.submit(partial(self._read, source, index, cancel, deliver))

    def close(self) -> None:
        """Ends the threads; work that has not begun is dropped."""
        self._readers.close()
        self._workers.close()

    def _read(self, source: Source, index: int, cancel: Cancel, deliver: Deliver) -> None:
        if cancel.is_set:
            return
        sample = source.manifest.sample(index)
        try:
            with self._metrics.stage("read"):
                data = read_sample(source.store, sample)
            self._metrics.received_bytes.inc(len(data))
            if source.transform is None:
                deliver(Loaded(index, data=data))
            else:
                decode = partial(self._decode, source, source.transform, index, sample, data, cancel, deliver)
                self._workers.submit(decode)
        except BaseException as error:
            deliver(self._failure(index, sample, "read", error))

    def _decode(
        self,
        source: Source,
        transform: TransformSpec,
        index: int,
        sample: Sample,
        data: bytes,
        cancel: Cancel,
        deliver: Deliver,
    ) -> None:
        if cancel.is_set:
            return
        try:
            with self._metrics.stage("decode"):
                tensor = load_sample(data, transform, seed=source.seed, epoch=source.epoch, index=index)
            deliver(Loaded(index, tensor=tensor))
        except BaseException as error:
            deliver(self._failure(index, sample, "decode", error))

    def _failure(self, index: int, sample: Sample, stage: str, error: BaseException) -> Loaded:
        """One sample that cannot be had fails alone; a store that is down, or lack of memory, ends the request."""
        if isinstance(error, StoreUnavailableError | MemoryError) or not isinstance(error, Exception):
            return Loaded(index, error=error)
        kind = error.kind if isinstance(error, HapiError) else "failed"
        self._metrics.stage_errors.labels(stage, kind).inc()
        if isinstance(error, HapiError):
            reason = str(error)
        else:
            log.error("sample %d (%s) could not be prepared", index, sample.key, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        return Loaded(index, failed=reason if sample.key in reason else f"{sample.key}: {reason}")


def _one_thread() -> None:
    """Decoding is parallel over samples already; torch's own threads would only fight over the same cores."""
    torch.set_num_threads(1)
