"""Spans under way: several are fetched at once, finished one by one on the compute device, handed out in order.

Memory is bounded: a span is only begun when its bytes fit into the budget beside those that are under way or waiting
to be handed out. The span that the consumer waits for is always begun, so the budget cannot stop progress.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from compute_client.source import SpanSource, Stage
from compute_client.spans import Span, take_first
from hapi.cancel import Cancel, CancelledWork
from hapi.errors import BatchTimeoutError
from hapi.plan import OUTPUT

log = logging.getLogger(__name__)

TOGETHER_SECONDS, LEAST_SECONDS = 0.75, 1e-6
"""How long spans that are finished together may take, by the last that took their cut, while there are others to deal:
nobody learns before the end that they are done. The least that is believed."""
LOOK_SECONDS = 0.5
"""Between two looks whether something may be begun, while nothing happens: time alone makes a span late."""
JOIN_SECONDS = 10.0
"""How long closing waits for a thread that is inside a computation or a system call."""

Finish = Callable[[str, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
"""From the tensors at a cut to the backbone's outputs, (g, *shape) each."""


@dataclass
class Finished:
    """A span with its finished features: `rows`, `labels` and `errors` as in Stage; `features` (g, *shape) each."""

    span: Span
    labels: np.ndarray
    rows: np.ndarray
    features: tuple[torch.Tensor, ...]
    errors: dict[int, str]


class Deal(Protocol):
    """Chooses the cuts of spans, and how long they are, as late as possible."""

    def consider(self, cancel: Cancel) -> None:
        """Called before a span is begun, without any lock; may block for a while, unless and until cancelled. Must not
        raise."""
        ...

    def next(self, waiting: Sequence[Span]) -> Span | None:
        """The span that would be begun now: the first samples of those that wait, one at least; None to wait until
        one of those that are begun has ended, or is late.

        Called under the pipeline's lock, perhaps several times.
        """
        ...

    def begun(self, span: Span) -> None:
        """The span, as last answered, is begun. Called under the pipeline's lock."""
        ...

    def arrived(self, span: Span, way_seconds: float) -> None:
        """It is here, after so long on its way, and waits to be finished. Called under the pipeline's lock."""
        ...

    def ended(self, span: Span) -> None:
        """It is finished, or has failed. Called under the pipeline's lock."""
        ...


class Pipeline:
    """Threads of one iteration. They know nothing of the iterator, so that an abandoned one can be collected."""

    def __init__(
        self,
        source: SpanSource,
        finish: Finish,
        span_bytes: Callable[[Span], int],
        *,
        in_flight: int,
        budget_bytes: int,
        keep: Callable[[Finished], None] | None = None,
        deal: Deal | None = None,
        together: int = 0,
    ) -> None:
        """`keep` sees every finished span, on the thread that finishes, before it is handed out. Without a `deal`,
        spans have the cuts that they are submitted with. Spans that wait are finished at once, up to so many samples
        `together`, if that does not take long."""
        self._together = together
        self._deal = deal
        self._source, self._finish, self._span_bytes, self._keep = source, finish, span_bytes, keep
        self._budget_bytes = budget_bytes
        self._cancel = Cancel()
        self._changed = threading.Condition()
        self._waiting: deque[Span] = deque()
        self._fetched: deque[tuple[Span, Stage]] = deque()
        self._done: dict[int, Finished | BaseException] = {}
        self._held: dict[int, int] = {}
        self._seconds: dict[str, float] = {}
        self._active = 0
        self._next = 0
        self._threads = [
            threading.Thread(target=self._fetch_spans, name=f"hapi-fetch-{number}", daemon=True)
            for number in range(in_flight)
        ]
        self._threads.append(threading.Thread(target=self._finish_spans, name="hapi-finish", daemon=True))
        _running.add(self)
        for thread in self._threads:
            thread.start()

    def submit(self, *spans: Span) -> None:
        """Adds the next spans. They must follow one another from number 0, each with the number that comes after those
        of the last one's samples."""
        with self._changed:
            self._waiting.extend(spans)
            self._changed.notify_all()

    def take(self, timeout_seconds: float | None = None) -> Finished:
        """The next span in order; blocks. Raises what its work raised, or BatchTimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._next in self._done, timeout_seconds):
                raise BatchTimeoutError(
                    f"no batch within {timeout_seconds:g} s (argument timeout). "
                    "The storage server or this machine is slower than that; raise the timeout or use 0 for none."
                )
            result = self._done.pop(self._next)
            self._held.pop(self._next, None)
            if isinstance(result, Finished):
                self._next += len(result.span)
            self._changed.notify_all()
        if isinstance(result, BaseException):
            raise result
        return result

    @property
    def held_bytes(self) -> int:
        """Bytes of the budget in use."""
        with self._changed:
            return sum(self._held.values())

    def close(self) -> None:
        """Stops all work and ends the threads; waits for them unless called by one of them. May be called again."""
        self._cancel.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._source.close()
        _running.discard(self)

    def _fetch_spans(self) -> None:
        while (span := self._begin()) is not None:
            try:
                stage = self._source.fetch(span, self._cancel)
            except CancelledWork:
                return
            except BaseException as error:  # whatever it is, the consumer must see it instead of waiting forever
                self._complete(span, error)
                continue
            with self._changed:
                if stage.cut is not None and stage.cut != span.cut:
                    span = replace(span, cut=stage.cut, way=None)
                    self._held[span.number] = self._span_bytes(span)
                if self._deal is not None:
                    self._deal.arrived(span, stage.way_seconds)
                self._fetched.append((span, stage))
                self._changed.notify_all()

    def _begin(self) -> Span | None:
        """Waits for a span that may be begun; None when the pipeline is closed."""
        if self._deal is not None and not self._cancel.is_set:
            self._deal.consider(self._cancel)
        with self._changed:
            while not self._cancel.is_set and (span := self._admitted()) is None:
                self._changed.wait(LOOK_SECONDS if self._deal is not None and self._waiting else None)
            if self._cancel.is_set:
                return None
            assert span is not None
            take_first(self._waiting, len(span))
            if self._deal is not None:
                self._deal.begun(span)
            self._held[span.number] = self._span_bytes(span)
            self._active += 1
            return span

    def _admitted(self) -> Span | None:
        """The span that is to be begun now; None while there is none, or no room for it."""
        if not self._waiting:
            return None
        span = self._waiting[0] if self._deal is None else self._deal.next(self._waiting)
        if span is None or (self._active == 0 and not self._done):
            return span
        held = sum(self._held.values())
        return span if held + self._span_bytes(span) <= self._budget_bytes else None

    def _finish_spans(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cancel.is_set or self._fetched)
                if self._cancel.is_set:
                    return
                group = self._next_group()
            self._finish_group(group)
            del group

    def _next_group(self) -> list[tuple[Span, Stage]]:
        """The span that the consumer waits for, and with it those behind it that are computed alike; before that, those
        of which nothing is left to compute."""
        ordered = sorted(self._fetched, key=lambda item: (item[0].cut != OUTPUT, item[0].number))
        first, rows = ordered[0], 0
        in_time = TOGETHER_SECONDS / self._seconds.get(first[0].cut, math.inf) if self._waiting else math.inf
        most = min(self._together, in_time)
        group = []
        for item in ordered:
            if item is first or (_alike(item, first) and rows + len(item[1].rows) <= most):
                group.append(item)
                rows += len(item[1].rows)
        for item in group:
            self._fetched.remove(item)
        return group

    def _finish_group(self, group: list[tuple[Span, Stage]]) -> None:
        """At once, which takes less time than one after the other; if that fails, to see which of them it is."""
        found: list[tuple[torch.Tensor, ...] | None] = [None] * len(group)
        started, rows = time.perf_counter(), sum(len(stage.rows) for _, stage in group)
        if len(group) > 1:
            counts = [len(stage.rows) for _, stage in group]
            try:
                columns = zip(*(stage.tensors for _, stage in group), strict=True)
                features = self._finish(group[0][0].cut, tuple(map(torch.cat, columns)))
                parts = (torch.split(column, counts) for column in features)
                found = list(zip(*parts, strict=True))
            except Exception:
                log.debug("spans could not be finished together", exc_info=True)
        for (span, stage), own in zip(group, found, strict=True):
            self._finish_one(span, stage, own)
        self._seconds[group[0][0].cut] = max(LEAST_SECONDS, time.perf_counter() - started) / max(1, rows)

    def _finish_one(self, span: Span, stage: Stage, features: tuple[torch.Tensor, ...] | None) -> None:
        """Hands a span out, once it is computed."""
        try:
            if features is None:
                features = self._finish(span.cut, stage.tensors) if len(stage.rows) else ()
            finished = Finished(span, stage.labels, stage.rows, features, stage.errors)
            if self._keep is not None:
                self._keep(finished)
        except BaseException as error:
            self._complete(span, error)
        else:
            self._complete(span, finished)

    def _complete(self, span: Span, result: Finished | BaseException) -> None:
        with self._changed:
            self._active -= 1
            if self._deal is not None:
                self._deal.ended(span)
            self._done[span.number] = result
            held = 0
            if isinstance(result, Finished):
                held = sum(tensor.nbytes for tensor in result.features)
            else:
                self._waiting.clear()  # nothing after a failure will be handed out
            self._held[span.number] = held
            self._changed.notify_all()


def _alike(one: tuple[Span, Stage], other: tuple[Span, Stage]) -> bool:
    """Whether both can be finished at once."""
    kinds = [[(tensor.shape[1:], tensor.dtype) for tensor in stage.tensors] for _, stage in (one, other)]
    return one[0].cut == other[0].cut and len(one[1].rows) > 0 and len(other[1].rows) > 0 and kinds[0] == kinds[1]


_running: weakref.WeakSet[Pipeline] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that still compute while the interpreter is taken down would crash it."""
    for pipeline in list(_running):
        pipeline.close()


# a forked child has the pipelines' memory but not their threads
os.register_at_fork(after_in_child=_running.clear)
