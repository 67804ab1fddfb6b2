"""The seam between the loader and where samples come from: a storage server, or this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from compute_client.spans import Span
from hapi.cancel import Cancel


@dataclass
class Stage:
    """What a span's samples are at its cut.

    Attributes:
        labels: int64 (n,), by row of the span; -1 for a sample without a label.
        rows: int64 (g,), ascending: the rows that succeeded.
        tensors: per tensor of the cut, (g, *shape) in host memory; empty when no row succeeded.
        errors: row -> reason, for the n - g others.
        cut: at which they are, if that is not the span's.
        way_seconds: that the request and its answer were on their way, where the server says what it took of the rest.
    """

    labels: np.ndarray
    rows: np.ndarray
    tensors: tuple[torch.Tensor, ...]
    errors: dict[int, str] = field(default_factory=dict)
    cut: str | None = None
    way_seconds: float = 0.0


class SpanSource(Protocol):
    """Answers spans. Used by several threads at once; a failure of single samples is part of the answer."""

    def fetch(self, span: Span, cancel: Cancel) -> Stage:
        """Blocks until the whole span is there. Raises HapiError if it cannot be had, CancelledWork if cancelled."""
        ...

    def close(self) -> None:
        """Gives threads back. Nothing is asked afterwards."""
        ...
