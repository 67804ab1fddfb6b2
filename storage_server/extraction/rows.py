"""What waits for the device: rows in lanes, and calls; and what it is given to do, a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from storage_server.extraction.engine import Prefix
from storage_server.extraction.mail import Letter
from storage_server.extraction.sizing import Decision
from storage_server.scheduling.fair import Flow


@dataclass(eq=False)
class Row:
    """One sample's input tensor (*prefix.input.shape), ready for the device.

    Attributes:
        flows: whom it is for; it stands in the line of each, and each pays its part.
        is_wanted: asked when a batch is formed; rows that nobody wants are not computed.
        deliver: called once, from another thread, with the cut's tensors of this sample or with what went wrong;
            CancelledWork if it was not computed because nobody wanted it. Answers whom to tell of it: whoever calls
            it posts these letters, all of a batch together.
        seconds: of the device, its part of its batch.
    """

    prefix: Prefix
    tensor: torch.Tensor
    flows: set[Flow]
    is_wanted: Callable[[], bool]
    deliver: Callable[[tuple[torch.Tensor, ...] | BaseException], list[Letter]]
    since: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0


@dataclass(eq=False)
class Call:
    """A piece of the device's time that is no batch, for one flow."""

    flow: Flow
    run: Callable[[], Any]


@dataclass(eq=False)
class Batch:
    """Rows of one lane that are to be computed now."""

    prefix: Prefix
    rows: list[Row]
    row_seconds: float
    """What each was charged."""
    parts: dict[Flow, float] = field(default_factory=dict)
    """Of the batch, for each flow that its rows are for: 1 in all."""
    dropped: list[Row] = field(default_factory=list)
    """Rows that nobody wanted, found on the way."""
    is_small: bool = False
    """Whether it is of those who want few, so that its size is not the policy's."""


@dataclass(eq=False)
class Lane:
    """The rows that wait for one prefix, per flow in order of arrival."""

    prefix: Prefix
    lines: dict[Flow, dict[Row, None]] = field(default_factory=dict)
    rows: dict[Row, None] = field(default_factory=dict)
    expected: int = 0
    """Rows on their way."""
    decision: Decision | None = None
    few: dict[str, int] = field(default_factory=dict)
    """Tenants who want few samples, beside others who want many, and how many; as of the decision."""

    @property
    def oldest(self) -> float:
        """Since when its first row waits."""
        return next(iter(self.rows)).since

    @property
    def is_empty(self) -> bool:
        return not self.rows and not self.expected
