"""One pass over a loader: keeps spans under way, puts batches together, and knows how far it is."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self

from compute_client.batches import Assembler, Batch
from compute_client.execution import Execution
from compute_client.order import EpochOrder
from compute_client.pipeline import Finished
from compute_client.position import Start
from hapi.errors import InputError

LOOKAHEAD_SPANS = 64
"""Spans whose indices are drawn before they are needed, so that work goes on while the training loop computes."""


class LoaderIterator:
    """Yields the batches of one epoch. Ends its threads when exhausted, closed, collected, or after an error."""

    def __init__(self, run: EpochRun) -> None:
        # nothing refers back to this object, so it is collected as soon as a loop is left
        self._run = run
        self._closer = weakref.finalize(self, run.close)

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
        self._planned: deque[list[int]] = deque()
        self._spans = execution.spans(self._indices(), start.progress.epoch)
        self._more_spans = True
        self._outstanding = 0
        self._assembler = Assembler(self._take, execution.dataset.describe, skip_errors=skip_errors)
        self._pipeline = execution.open()

    def __next__(self) -> Any:
        while True:
            self._top_up()
            if not self._planned:
                self._progress.is_over = True
                raise StopIteration
            started = time.perf_counter()
            batch = self._planned.popleft()
            samples = self._assembler.next(len(batch))
            self._execution.stats.add(waiting_seconds=time.perf_counter() - started)
            self._top_up()
            self._yielded(batch, len(samples))
            if len(samples):
                return self._make(samples)

    def close(self) -> None:
        self._pipeline.close()

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

    def _count(self, batch: list[int]) -> None:
        self._progress.batches += 1
        # ranks differ in their samples, but a state that one of them saved must do for all
        self._progress.order.add(batch if self._whole_digest else [len(batch)])

    def _yielded(self, batch: list[int], samples: int) -> None:
        self._count(batch)
        self._progress.is_over = not self._planned
        self._execution.stats.add(samples=samples, batches=1 if samples else 0, failed_samples=len(batch) - samples)

    def _indices(self) -> Iterator[int]:
        for batch in self._batches:
            self._planned.append(batch)
            yield from batch

    def _top_up(self) -> None:
        """Submits spans as far as the lookahead reaches; afterwards a batch is planned unless the epoch is over."""
        while self._more_spans and self._outstanding < LOOKAHEAD_SPANS:
            span = next(self._spans, None)
            if span is None:
                self._more_spans = False
            else:
                self._outstanding += 1
                self._pipeline.submit(span)

    def _take(self) -> Finished:
        self._top_up()
        finished = self._pipeline.take(self._timeout)
        self._outstanding -= 1
        return finished
