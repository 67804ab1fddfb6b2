"""One pass over a loader: keeps spans under way, puts batches together, and knows how far it is."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from compute_client.ahead import ReadAhead
from compute_client.batches import EMPTY, Assembler, Batch, merge
from compute_client.execution import Execution
from compute_client.order import EpochOrder
from compute_client.pipeline import Finished, Pipeline
from compute_client.position import Start
from compute_client.spans import Span, SpanCutter
from hapi.errors import InputError

LOOKAHEAD_SAMPLES, LOOKAHEAD_BATCHES = 4096, 2
"""Samples (at least batches) that are drawn before they are needed, so that work goes on while the training loop
computes."""


@dataclass(frozen=True)
class Planned:
    """A batch that comes: its samples, twice, and the positions of those that are not in the cache (None: all)."""

    indices: list[int]
    chosen: np.ndarray
    missing: np.ndarray | None = None

    @property
    def fetched(self) -> int:
        """How many of its samples come in spans."""
        return len(self.indices) if self.missing is None else len(self.missing)

    @cached_property
    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples that are in the cache: positions in the batch, and indices, int64 (n,)."""
        positions = np.arange(0 if self.missing is None else len(self.indices))
        if not self.fetched:
            return positions, self.chosen
        if self.missing is not None:
            positions = np.delete(positions, self.missing)
        return positions, self.chosen[positions]


class LoaderIterator:
    """Yields the batches of one epoch. Ends its threads when exhausted, closed, collected, or after an error."""

    def __init__(self, run: EpochRun) -> None:
        # nothing refers back to this object, so it is collected as soon as a loop is left
        self._run = run
        self._closer = weakref.finalize(self, _close, run, os.getpid())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._closer.alive:
            raise StopIteration
        try:
            return next(self._run)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops the work that is under way."""
        self._closer()


def _close(run: EpochRun, process: int) -> None:
    """Not in a forked child: the threads are the parent's, and breaking requests off would break the parent's off."""
    if os.getpid() == process:
        run.close()


class EpochRun:
    """The work behind one iterator."""

    def __init__(
        self,
        execution: Execution,
        order: EpochOrder,
        start: Start,
        make: Callable[[Batch], Any],
        *,
        timeout_seconds: float | None,
        skip_errors: bool,
    ) -> None:
        """`make` turns samples into what is yielded. InputError if `start` is not in this order."""
        self._execution, self._progress, self._make = execution, start.progress, make
        self._timeout = timeout_seconds
        self._whole_digest = order.world.size == 1
        self._batches = order.batches(start.progress.epoch)
        self._skip(start.skip, start.expected_order)
        self._cache = execution.cache
        self._view = execution.begin(start.progress.epoch)
        self._ahead = ReadAhead(self._cache, self._view) if self._cache is not None else None
        self._planned: deque[Planned] = deque()
        self._planned_samples = 0
        self._more_batches = True
        self._outstanding = 0  # samples in spans that were submitted and not taken
        self._assembler = Assembler(self._take, execution.dataset.describe, skip_errors=skip_errors)
        self._cutter: SpanCutter | None = None
        self._pipeline: Pipeline | None = None
        if self._cache is None:
            self._open()

    def __next__(self) -> Any:
        self._execution.activity.trains(False)
        while True:
            self._top_up()
            if not self._planned:
                self._progress.is_over = True
                raise StopIteration
            started = time.perf_counter()
            batch = self._planned.popleft()
            self._planned_samples -= len(batch.indices)
            samples = self._complete(batch)
            self._execution.stats.add(waiting_seconds=time.perf_counter() - started)
            self._top_up()
            if self._ahead is not None and self._planned and len(self._planned[0].kept[1]):
                self._ahead.begin(self._planned[0].kept[1])
            made = self._make(samples) if len(samples) else None
            self._yielded(batch.chosen, len(samples))  # once nothing can fail any more
            if len(samples):
                self._execution.activity.trains(True)
                return made

    def close(self) -> None:
        self._execution.activity.trains(False)
        if self._pipeline is not None:
            self._pipeline.close()
        if self._ahead is not None:
            self._ahead.close()

    def _skip(self, count: int, expected_order: str) -> None:
        for done in range(count):
            batch = next(self._batches, None)
            if batch is None:
                raise InputError(
                    f"loader state: {count} batches of epoch {self._progress.epoch} were done, but it has {done}. "
                    "Use the batch size and sampler of that time."
                )
            self._count(batch)
        if expected_order and expected_order != self._progress.order.read():
            raise InputError(
                "loader state: the order of its epoch cannot be repeated with this sampler, generator or batch size. "
                "Use those of that time, or remove 'order' from the state to go on without this check."
            )

    def _count(self, batch: Sequence[int] | np.ndarray) -> None:
        self._progress.batches += 1
        # ranks differ in their samples, but a state that one of them saved must do for all
        self._progress.order.add(batch if self._whole_digest else [len(batch)])

    def _yielded(self, batch: np.ndarray, samples: int) -> None:
        self._count(batch)
        self._progress.is_over = not self._planned
        self._execution.stats.add(samples=samples, batches=1 if samples else 0, failed_samples=len(batch) - samples)

    def _complete(self, batch: Planned) -> Batch:
        """The batch's samples: what came in spans, and what was kept."""
        fresh = self._assembler.next(batch.fetched) if batch.fetched else EMPTY
        positions, indices = batch.kept
        if self._ahead is None or not len(indices):
            return fresh
        device = self._execution.device
        there, features, labels = self._ahead.gather(indices)
        self._execution.stats.add(cached_samples=len(there))
        if not batch.fetched and len(there) == len(indices):
            return Batch(batch.indices, tuple(feature.to(device) for feature in features), labels, there)
        parts = [Batch(indices[there].tolist(), features, labels, positions[there])]
        if batch.fetched:
            assert batch.missing is not None
            parts.append(replace(fresh, positions=batch.missing[fresh.positions]))
        if len(lost := np.delete(positions, there)):
            parts.append(self._again(batch, lost))
        return merge(parts, device)

    def _again(self, batch: Planned, lost: np.ndarray) -> Batch:
        """Samples that were kept on disk when the batch was planned, and are not any more."""
        pipeline = self._execution.open()
        try:
            cutter = self._execution.cutter(self._view)
            indices = [batch.indices[position] for position in lost]
            spans = [span for index in indices if (span := cutter.add(index)) is not None]
            spans += [span for span in [cutter.flush()] if span is not None]
            pipeline.submit(*spans)
            assembler = self._assembler.over(lambda: pipeline.take(self._timeout))
            found = assembler.next(len(indices))
        finally:
            pipeline.close()
        return replace(found, positions=lost[found.positions])

    def _open(self) -> tuple[SpanCutter, Pipeline]:
        """Begins to compute, at the first sample that is not in the cache."""
        if self._cutter is None or self._pipeline is None:
            self._pipeline = self._execution.open()
            self._cutter = self._execution.cutter(self._view)
        return self._cutter, self._pipeline

    def _top_up(self) -> None:
        """Plans batches as far as the lookahead reaches; afterwards one is planned unless the epoch is over."""
        spans: list[Span | None] = []
        while self._more_batches and (
            len(self._planned) < LOOKAHEAD_BATCHES or self._planned_samples < LOOKAHEAD_SAMPLES
        ):
            batch = next(self._batches, None)
            if batch is None:
                self._more_batches = False
                spans.append(self._cutter.flush() if self._cutter is not None else None)
                break
            spans += self._plan(batch)
        self._submit(*spans)  # at once: how they are dealt depends on how many there are
        if not self._outstanding and self._cutter is not None:
            self._submit(self._cutter.flush())  # few are missing: they need not wait for more

    def _plan(self, batch: list[int]) -> list[Span | None]:
        """Takes over the next batch; answers the spans that are whole now."""
        chosen = np.array(batch, np.int64)
        planned = Planned(batch, chosen, None if self._cache is None else self._cache.missing(chosen, self._view))
        self._planned.append(planned)
        self._planned_samples += len(batch)
        if not planned.fetched:
            return []
        cutter, _ = self._open()
        return [cutter.add(batch[at]) for at in (range(len(batch)) if planned.missing is None else planned.missing)]

    def _submit(self, *spans: Span | None) -> None:
        there = [span for span in spans if span is not None]
        if there:
            assert self._pipeline is not None
            self._outstanding += sum(map(len, there))
            self._pipeline.submit(*there)

    def _take(self) -> Finished:
        self._top_up()
        if not self._outstanding and self._cutter is not None:
            self._submit(self._cutter.flush())
        assert self._pipeline is not None
        finished = self._pipeline.take(self._timeout)
        self._outstanding -= len(finished.span)
        return finished
