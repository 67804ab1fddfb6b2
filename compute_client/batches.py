"""From spans back to training batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from compute_client.pipeline import Finished
from hapi.errors import SampleError

Features = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """Samples by their index in the dataset: features (n, *shape) per output of the backbone, labels int64 (n,).

    `positions`: int64 (n,), ascending: where they are among the samples that were asked for; others failed.
    """

    indices: list[int]
    features: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


EMPTY = Batch([], (), torch.empty(0, dtype=torch.int64), np.empty(0, np.int64))


def merge(parts: Sequence[Batch], device: torch.device) -> Batch:
    """One batch of samples that came on several ways, in the order of their positions, on the device."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return EMPTY
    columns = [tuple(feature.to(device) for feature in part.features) for part in parts]
    if len(parts) == 1:
        return replace(parts[0], features=columns[0])
    where = np.concatenate([part.positions for part in parts])
    order = np.argsort(where)
    rows = torch.from_numpy(order)
    indices = [index for part in parts for index in part.indices]
    return Batch(
        [indices[row] for row in order],
        tuple(torch.cat(column)[rows.to(device)] for column in zip(*columns, strict=True)),
        torch.cat([part.labels for part in parts])[rows],
        where[order],
    )


class Assembler:
    """Cuts the stream of finished spans at the borders of the batches."""

    def __init__(self, take: Callable[[], Finished], describe: Callable[[int, str], str], *, skip_errors: bool) -> None:
        """`take` gives the next span, `describe` says in words what is wrong with a sample."""
        self._take, self._describe, self._skip = take, describe, skip_errors
        self._spans: deque[tuple[Finished, int]] = deque()  # a span and how many of its rows were used

    def over(self, take: Callable[[], Finished]) -> Assembler:
        """An assembler by the same rules over other spans."""
        return Assembler(take, self._describe, skip_errors=self._skip)

    def next(self, count: int) -> Batch:
        """The next `count` samples; fewer when some are skipped."""
        columns: list[tuple[torch.Tensor, ...]] = []
        indices: list[int] = []
        labels: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        passed = 0
        while passed < count:
            span, start = self._spans.popleft() if self._spans else (self._take(), 0)
            stop = min(start + count - passed, len(span.span))
            self._check(span, start, stop)
            first, last = np.searchsorted(span.rows, (start, stop))
            if last > first:
                columns.append(tuple(feature[first:last] for feature in span.features))
                rows = span.rows[first:last]
                labels.append(span.labels[rows])
                indices += [span.span.indices[row] for row in rows]
                positions.append(rows - start + passed)
            passed += stop - start
            if stop < len(span.span):
                self._spans.appendleft((span, stop))
        if not columns:
            return EMPTY
        joined = tuple(torch.cat(column) if len(column) > 1 else column[0] for column in zip(*columns, strict=True))
        return Batch(indices, joined, torch.from_numpy(np.concatenate(labels)), np.concatenate(positions))

    def _check(self, span: Finished, start: int, stop: int) -> None:
        """Raises the error of the first sample that failed, unless such are skipped."""
        for row in range(start, stop) if span.errors and not self._skip else ():
            if row in span.errors:
                index = span.span.indices[row]
                raise SampleError(
                    f"{self._describe(index, span.errors[row])} "
                    'Leave such samples out with on_error="skip" (--skip-errors on the command line).',
                    index,
                )


def collate(
    samples: Batch,
    *,
    collate_fn: Callable[[list[Any]], Any] | None,
    batched: bool,
    device: torch.device,
    pin_memory: bool,
) -> Any:
    """What the loader yields for a batch.

    By default (features, labels): features (n, *shape) on the device (a tuple if the backbone has several outputs),
    labels int64 (n,). A `collate_fn` gets the list of (feature, label) of the samples, label as a Python integer.
    Without batching (`batch_size=None`) a single (feature, label tensor) is yielded.
    """
    features, labels = samples.features, samples.labels
    whole: Features = features[0] if len(features) == 1 else tuple(features)
    batch: Any
    if collate_fn is not None:
        rows = zip(*features, strict=True) if len(features) > 1 else features[0]
        pairs = list(zip(rows, labels.tolist(), strict=True))
        batch = collate_fn(pairs if batched else pairs[0])  # type: ignore[arg-type]
    else:
        batch = whole, labels.to(device)
        if not batched:
            batch = (whole[0] if isinstance(whole, torch.Tensor) else tuple(part[0] for part in whole)), batch[1][0]
    return pinned(batch) if pin_memory else batch


def pinned(value: Any) -> Any:
    """A page-locked copy of every CPU tensor in nested tuples, lists and dicts; others may have pin_memory()."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory() if value.device.type == "cpu" else value
    if isinstance(value, dict):
        return type(value)((key, pinned(item)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(pinned, value))
    if isinstance(value, tuple | list):
        return type(value)(map(pinned, value))
    return value.pin_memory() if hasattr(value, "pin_memory") else value
