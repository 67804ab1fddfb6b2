"""Samples from a storage server, with what is missing asked for again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from compute_client.decode import Decoder
from compute_client.outage import Outage
from compute_client.replanning.observer import Observer
from compute_client.restoring import Restorer
from compute_client.source import Stage
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from compute_client.window import Window
from hapi.backoff import TRANSIENT, Backoff, RetryPolicy
from hapi.cancel import Cancel
from hapi.data import images
from hapi.engine import Precision
from hapi.errors import (
    BusyError,
    HapiError,
    TruncatedStreamError,
    UnknownDatasetError,
    UnknownModelError,
    WireError,
)
from hapi.plan import INPUT, TRIMMED, Plan
from hapi.wire import FeatureBatch
from hapi.wire.protocol import ExtractRequest
from profiler.remote import ServerClient

Carried = Callable[[str], Sequence[tuple[tuple[int, ...], torch.dtype]]]
"""Shape per sample and dtype of each tensor that a cut carries."""
MOST_AT_ONCE = 1024
MAX_RESTORES = 5
"""How often one span tells the server what it forgot; a server that forgets more often has no room for the model."""


@dataclass(frozen=True)
class RemoteJob:
    """What every request of a loader has in common. `model` and `transform` may be None if only `input` is asked."""

    dataset: str
    model: str | None
    transform: list[dict[str, Any]] | None
    seed: int
    codec: str = "float32"
    compression: str = "none"
    ways: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Cut -> (codec, compression) where that differs from the two above."""
    precision: Precision = "float32"

    def planned(self, plan: Plan) -> RemoteJob:
        """The same with what a plan says of how features travel."""
        ways = {
            share.name: (share.codec or self.codec, share.compression or self.compression)
            for share in plan.cuts
            if share.codec or share.compression
        }
        return replace(self, ways=ways)

    def request(self, span: Span, indices: list[int]) -> ExtractRequest:
        at_input = span.cut == INPUT
        codec, compression = span.way or self.ways.get(span.cut, (self.codec, self.compression))
        return ExtractRequest(
            dataset=self.dataset,
            indices=indices,
            cut=span.cut,
            model=None if at_input else self.model,
            transform=self.transform if not at_input or compression == TRIMMED else None,
            seed=self.seed,
            epoch=span.epoch,
            codec=codec,  # type: ignore[arg-type]  # pydantic checks that these are names of the protocol
            compression=compression,  # type: ignore[arg-type]
            precision=None if at_input else self.precision,
        )


class RemoteSource:
    """A SpanSource over one server. Any server that knows model and dataset gives the same answer, so retries are safe.

    An answer that breaks off costs a request for the samples that are missing, after a pause; a server that forgot the
    model or the dataset is told them again. Patience (`retry`) counts from the last sample that arrived. A server that
    is full is asked for less at once (`window`), and not before the time that it names.
    """

    def __init__(
        self,
        client: ServerClient,
        job: RemoteJob,
        *,
        retry: RetryPolicy,
        restorer: Restorer,
        decoder: Decoder | None,
        stats: LoaderStats,
        window: Window | None = None,
        observer: Observer | None = None,
        carried: Carried | None = None,
    ) -> None:
        """`decoder` is needed for spans at cut `input` only. Without a `window`, one as wide as there are threads.

        `observer` learns of what arrives. Without `carried`, the first message of a span says what its cut carries.
        """
        self._carried = carried
        self._observer = observer
        self._client, self._job, self._retry, self._restorer = client, job, retry, restorer
        self._decoder, self._stats, self._window = decoder, stats, window or Window(MOST_AT_ONCE)
        self._outage = Outage(client.url, retry)

    def fetch(self, span: Span, cancel: Cancel) -> Stage:
        answer: _Answer
        if span.cut == INPUT and self._decoder:
            answer = _Objects(span, self._decoder, cancel)
        else:
            answer = _Tensors(span, self._carried(span.cut) if self._carried else None)
        backoff = Backoff(self._retry, cancel)
        restores = 0
        while missing := answer.missing():
            known = self._restorer.round
            try:
                self._ask_in_turn(span, missing, answer, backoff, cancel)
            except (UnknownModelError, UnknownDatasetError) as error:
                cancel.check()
                if (restores := restores + 1) > MAX_RESTORES:
                    raise
                self._recover(error, known, backoff)
            except TRANSIENT as error:
                cancel.check()
                self._outage.met(error)
                backoff.pause(error)
            if answer.missing():
                self._stats.add(retries=1)
        self._stats.arrived(span.cut, len(span) - len(answer.errors))
        return answer.stage()

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def _ask_in_turn(self, span: Span, indices: list[int], answer: _Answer, backoff: Backoff, cancel: Cancel) -> None:
        """Asks when the window has a place. A full server is no error: the window keeps everybody back for a while."""
        with self._window.place(span.number, cancel) as place:
            try:
                self._ask(span, indices, answer, backoff, cancel)
            except BusyError as error:
                cancel.check()
                self._outage.met(error)
                self._window.refused(place, backoff.delay(error))
                self._stats.add(refused=1)
            else:
                self._window.answered()

    def _ask(self, span: Span, indices: list[int], answer: _Answer, backoff: Backoff, cancel: Cancel) -> None:
        self._stats.add(requests=1)
        began, elapsed = time.monotonic(), 0.0
        request = self._job.request(span, indices)
        arriving = None if self._observer is None else self._observer.answer(span.cut, span.way)

        def received(count: int) -> None:
            self._stats.add(bytes_received=count)
            if arriving is not None:
                arriving.received(count)

        try:
            for batch in self._client.extract(request, cancel=cancel, received=received):
                cancel.check()
                if arriving is not None:
                    arriving.completed(batch.work)
                if batch.work is not None:
                    elapsed += batch.work.elapsed
                    answer.way_seconds = max(0.0, time.monotonic() - began - elapsed)
                answer.add(batch)
                if len(batch):  # a server that sends messages, but no samples, is not waited for without end
                    backoff.progress()
                    self._outage.over()
        finally:
            if arriving is not None:
                arriving.ended()
        if left := answer.missing():
            raise TruncatedStreamError(
                f"{self._client.url}: answered without {len(left)} of {len(indices)} samples (first: {left[0]})."
            )

    def _recover(self, error: HapiError, known: int, backoff: Backoff) -> None:
        try:
            self._restorer.restore(error, known)
        except TRANSIENT as failure:
            backoff.pause(failure)


class _Answer:
    """What arrived of a span so far, by row."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.labels = np.full(len(span), -1, np.int64)
        self.errors: dict[int, str] = {}
        self.way_seconds = 0.0
        self._missing = {index: row for row, index in enumerate(span.indices)}

    def missing(self) -> list[int]:
        return list(self._missing)

    def add(self, batch: FeatureBatch) -> None:
        rows = np.empty(len(batch), np.int64)
        for position, index in enumerate(batch.indices.tolist()):
            row = self._missing.pop(index, None)
            if row is None:
                raise WireError(f"feature stream: sample {index} was not asked for, or came twice.")
            rows[position] = row
        self.labels[rows] = batch.labels
        for position, reason in batch.errors.items():
            self.errors[int(rows[position])] = reason
        self.put(rows, batch)

    def put(self, rows: np.ndarray, batch: FeatureBatch) -> None:
        """Takes over a message whose row i is the span's row `rows[i]`, failed samples included."""
        raise NotImplementedError

    def stage(self) -> Stage:
        raise NotImplementedError


class _Tensors(_Answer):
    """Tensors at a cut."""

    def __init__(self, span: Span, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]] | None) -> None:
        super().__init__(span)
        self._kinds = kinds and list(kinds)
        self._tensors: tuple[torch.Tensor, ...] = ()

    def put(self, rows: np.ndarray, batch: FeatureBatch) -> None:
        found = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in batch.tensors]
        if self._kinds is None and found:
            self._kinds = found
        if found != self._kinds:  # memory for the whole span is taken by them, whatever one message holds
            raise WireError(
                f"feature stream: cut {self.span.cut!r} came as {found or 'no tensors'} per sample instead of "
                f"{self._kinds or 'tensors'}. Are client and server of the same version?"
            )
        if not self._tensors:
            if np.array_equal(rows, np.arange(len(self.span))):  # the whole span at once, and in order
                self._tensors = batch.tensors
                return
            self._tensors = tuple(
                torch.empty((len(self.span), *tensor.shape[1:]), dtype=tensor.dtype) for tensor in batch.tensors
            )
        where = _places(rows)
        for whole, part in zip(self._tensors, batch.tensors, strict=True):
            whole[where] = part

    def stage(self) -> Stage:
        rows = np.array([row for row in range(len(self.span)) if row not in self.errors], np.int64)
        tensors = self._tensors
        if self.errors:
            tensors = tuple(tensor[torch.from_numpy(rows)] for tensor in tensors)
        return Stage(self.labels, rows, tensors, self.errors, way_seconds=self.way_seconds)


class _Objects(_Answer):
    """Stored objects, decoded here while more arrive."""

    def __init__(self, span: Span, decoder: Decoder, cancel: Cancel) -> None:
        super().__init__(span)
        self._decoder, self._cancel = decoder, cancel
        self._futures: dict[int, Future[torch.Tensor]] = {}

    def put(self, rows: np.ndarray, batch: FeatureBatch) -> None:
        if batch.objects is None:
            raise WireError("feature stream: cut 'input' came without objects.")
        windows = [None] * len(batch) if batch.windows is None else [_window(part) for part in batch.windows.tolist()]
        for position, row in enumerate(rows.tolist()):
            if position not in batch.errors:
                read = partial(_same, batch.objects[position])
                index = self.span.indices[row]
                submit = partial(self._decoder.submit, window=windows[position])
                self._futures[row] = submit(read, index, self.span.epoch, self._cancel)

    def stage(self) -> Stage:
        return self._decoder.collect(self.labels, self._futures, self.errors)


def _places(rows: np.ndarray) -> slice | torch.Tensor:
    """Rows as what a tensor is indexed with: those in a row as a slice, which is copied at once."""
    first = int(rows[0]) if len(rows) else 0
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return slice(first, first + len(rows))
    return torch.from_numpy(rows)


def _window(part: list[int]) -> images.Window | None:
    return images.Window(*part) if any(part) else None


def _same(data: bytes) -> bytes:
    return data
