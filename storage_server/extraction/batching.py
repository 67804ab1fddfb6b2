"""A batch through a prefix: at once, or in halves and quarters if memory runs out; and every row to those it is for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hapi.cancel import CancelledWork
from hapi.model.pauses import processor_seconds, working_seconds
from storage_server.extraction.copies import copies_for
from storage_server.extraction.engine import Prefix
from storage_server.extraction.mail import Letter, Tensors, post
from storage_server.extraction.patience import Patience, attempt
from storage_server.extraction.rows import Batch, Row
from storage_server.extraction.sizing import BatchPolicy
from storage_server.memory.outofmemory import make_room
from storage_server.memory.workspaces import Workspaces
from storage_server.metrics import Metrics
from storage_server.scheduling.rates import Rates
from storage_server.status import Board

log = logging.getLogger(__name__)

Finish = Callable[[Callable[[], Any]], Any]

_SPENT = torch.empty(0)
"""In place of an input that has been computed with."""


class Batches:
    """Runs batches on the device's thread; `finish` takes what is to be done with the results to another thread."""

    def __init__(
        self,
        policy: BatchPolicy,
        rates: Rates,
        board: Board,
        metrics: Metrics,
        patience: Patience,
        finish: Finish,
        workspaces: Workspaces | None = None,
    ) -> None:
        """Without `workspaces` no batch's memory is measured."""
        self._workspaces = workspaces
        self._policy = policy
        self._rates = rates
        self._board = board
        self._metrics = metrics
        self._patience = patience
        self._finish = finish

    def run(self, batch: Batch) -> None:
        """Computes the rows and delivers each, whatever happens: its tensors or what went wrong."""
        rows, size, dropped = batch.rows, len(batch.rows), batch.dropped
        while rows:
            part, rows = rows[:size], rows[size:]
            dropped += [row for row in part if not row.is_wanted()]
            part = [row for row in part if row not in dropped]
            try:
                if part and not self._run_part(batch.prefix, part, is_small=batch.is_small):
                    size = self._policy.failed(batch.prefix, len(part))
                    log.warning("%s: out of memory with %d samples, now %d", batch.prefix.what, len(part), size)
                    rows = part + rows
            except Exception as error:
                self._finish(partial(_fail, part, error))
        if dropped:
            self._finish(partial(_fail, dropped, CancelledWork("nobody wants it any longer")))

    def run_between(self, batch: Batch) -> bool:
        """The same for a small batch, while another one pauses; False if memory ran out: it is to be run later."""
        rows = [row for row in batch.rows if row.is_wanted()]
        try:
            if rows and not self._run_part(batch.prefix, rows, is_guest=True, is_small=True):
                return False
        except Exception as error:
            self._finish(partial(_fail, rows, error))
        if dropped := batch.dropped + [row for row in batch.rows if row not in rows]:
            self._finish(partial(_fail, dropped, CancelledWork("nobody wants it any longer")))
        return True

    def _run_part(self, prefix: Prefix, rows: list[Row], *, is_guest: bool = False, is_small: bool = False) -> bool:
        """Whether memory sufficed. A single row is tried with patience, and then raises MemoryBudgetError.

        A guest is tried once. What is small beside larger batches teaches nothing of its size: it is so short that
        nobody else may have taken of its time, and would seem as fast as they. On processors the time that the thread
        had one tells of the size, as others decode meanwhile; the time that passed tells when the next batch is ready.
        """
        started, worked = working_seconds(), processor_seconds()
        with self._metrics.stage("prefix"):
            if len(rows) == 1 and not is_guest:
                tensors = self._patience(
                    f"{prefix.what}, a batch of one,", lambda _: self._pass(prefix, rows), "prefix"
                )
            else:
                tried = attempt(lambda: self._pass(prefix, rows))
                if not tried.has_value:
                    self._metrics.out_of_memory.inc()
                    self._board.ran_out(prefix)
                    make_room(prefix.device)
                    return False
                tensors = tried.get()
        seconds, work = working_seconds() - started, processor_seconds() - worked
        for row in rows:
            row.seconds = seconds / len(rows)
            row.tensor = _SPENT  # from now on the queues' bytes count it no longer
        self._metrics.batch_size.observe(len(rows))
        self._rates.learned(prefix.key, len(rows), seconds)
        if not is_small:
            self._policy.succeeded(prefix, len(rows), work if prefix.device == "cpu" else seconds)
        self._board.computed(prefix, len(rows), seconds)
        self._finish(partial(self._deliver, prefix, rows, tensors))
        return True

    def _pass(self, prefix: Prefix, rows: list[Row]) -> Tensors:
        """The cut's tensors (n, *shape) of n rows."""
        batch = copies_for(prefix.device).gather([row.tensor for row in rows])
        if self._workspaces is None:
            return prefix.run(batch)
        with self._workspaces.observing(prefix, len(rows)):
            tensors = prefix.run(batch)
        peak = self._workspaces.peak_bytes(prefix)
        if peak is not None:
            self._board.measured(prefix, peak)
        return tensors

    def _deliver(self, prefix: Prefix, rows: list[Row], tensors: Tensors) -> None:
        """Each row gets memory of its own: a slice would keep the whole batch alive for a caller that reads slowly.

        All who wait are told at once; where memory is short, of those rows that are there before more are tried.
        """
        letters: list[Letter] = []

        def take(position: int, attempt: int) -> Tensors:
            if attempt:
                post(letters)
                letters.clear()
            return _own(tensors, position)

        for position, row in enumerate(rows):
            try:
                own = self._patience(f"{prefix.what}, one row,", partial(take, position), "copy", row.is_wanted)
                letters += row.deliver(own)
            except Exception as error:
                letters += row.deliver(error)
        post(letters)


def _own(tensors: Tensors, position: int) -> Tensors:
    return tuple(
        tensor[0] if len(tensor) == 1 else tensor[position].clone(memory_format=torch.contiguous_format)
        for tensor in tensors
    )


def _fail(rows: list[Row], error: Exception) -> None:
    post([letter for row in rows for letter in row.deliver(error)])
