"""Samples in process: read from the store, decoded and transformed here."""

from __future__ import annotations

from functools import partial

import numpy as np

from compute_client.decode import Decoder
from compute_client.source import Stage
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from hapi.cancel import Cancel
from hapi.data import Manifest, ObjectStore, Sample, read_sample
from hapi.errors import InputError
from hapi.plan import INPUT


class LocalSource:
    """A SpanSource for cut `input`, without any server."""

    def __init__(self, store: ObjectStore, manifest: Manifest, decoder: Decoder, stats: LoaderStats) -> None:
        self._store, self._manifest, self._decoder, self._stats = store, manifest, decoder, stats

    def fetch(self, span: Span, cancel: Cancel) -> Stage:
        if span.cut != INPUT:
            raise InputError(f"cut {span.cut!r} needs a storage server. Give server=URL, or leave pushdown out.")
        labels = np.full(len(span), -1, np.int64)
        futures = {}
        for row, index in enumerate(span.indices):
            sample = self._manifest.sample(index)
            if sample.label is not None:
                labels[row] = sample.label
            futures[row] = self._decoder.submit(partial(self._read, sample), index, span.epoch, cancel)
        stage = self._decoder.collect(labels, futures, {})
        self._stats.arrived(span.cut, len(stage.rows))
        return stage

    def close(self) -> None:
        self._decoder.close()
        self._store.close()

    def _read(self, sample: Sample) -> bytes:
        data = read_sample(self._store, sample)
        self._stats.add(bytes_read=len(data))
        return data
