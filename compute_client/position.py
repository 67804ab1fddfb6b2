"""Where a loader is in its epochs: what was yielded, what comes next, and both as a small state to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compute_client.dataset import Dataset
from compute_client.order import EpochOrder
from compute_client.state import LoaderState, OrderDigest
from hapi.errors import InputError


@dataclass
class Progress:
    """How far an epoch was yielded."""

    epoch: int
    batches: int = 0
    is_over: bool = False
    generator: str | None = None
    """State of the user's generator at the beginning of the epoch."""
    order: OrderDigest = field(default_factory=OrderDigest)


@dataclass(frozen=True)
class Start:
    """Where an iteration begins: the epoch, the batches of it that were yielded before, and the digest of those
    batches (`""` is not checked)."""

    progress: Progress
    skip: int
    expected_order: str


class Position:
    """Belongs to one loader and one order; every iteration that begins moves it."""

    def __init__(self, order: EpochOrder, dataset: Dataset) -> None:
        self._order, self._dataset = order, dataset
        self._next = Progress(0)
        self._expected_order = ""
        self._current: Progress | None = None

    def begin(self) -> Start:
        """Begins what comes next; the epoch after it comes then."""
        begin, expected = self._next, self._expected_order
        if begin.generator is not None:
            self._order.generator_state = begin.generator
        progress = Progress(begin.epoch, generator=self._order.generator_state)
        self._current, self._expected_order = progress, ""
        self._next = Progress(begin.epoch + 1)
        return Start(progress, begin.batches, expected)

    def set_epoch(self, epoch: int) -> None:
        """Lets `epoch` come next, from its beginning."""
        if epoch < 0:
            raise InputError(f"epoch {epoch}: must not be negative.")
        self._next, self._expected_order, self._current = Progress(epoch), "", None
        self._order.set_epoch(epoch)

    def state(self) -> dict[str, Any]:
        """How far the current epoch was yielded; at its end, the beginning of the next."""
        at = self._current
        if at is None:
            at, order = self._next, self._expected_order
            generator = at.generator or self._order.generator_state
        elif at.is_over:
            at, order, generator = Progress(at.epoch + 1), "", self._order.generator_state
        else:
            order, generator = at.order.read(), at.generator
        return LoaderState(
            epoch=at.epoch,
            batches=at.batches,
            samples=self._dataset.samples,
            dataset=self._dataset.order_digest,
            seed=self._order.seed,
            order=order if at.batches else "",
            generator=generator,
        ).to_json()

    def load(self, document: Mapping[str, Any]) -> None:
        """Lets the batch after those of a state come next; InputError if it is of another dataset or seed."""
        state = LoaderState.from_json(document)
        state.check_fits(samples=self._dataset.samples, dataset=self._dataset.order_digest, seed=self._order.seed)
        self._next = Progress(state.epoch, batches=state.batches, generator=state.generator)
        self._expected_order = state.order
        self._current = None
        self._order.set_epoch(state.epoch)
