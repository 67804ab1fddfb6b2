"""One sample on its way, and the tickets of those who wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch

from hapi.cancel import Cancel
from storage_server.extraction.engine import Prefix
from storage_server.extraction.loading import Source
from storage_server.extraction.rows import Row
from storage_server.features.beginnings import Beginning
from storage_server.scheduling.fair import Flow

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Arrival:
    """One sample that is done, or why not.

    `failed` is this sample's own trouble, and becomes its row's `error`; `error` is trouble that ends the request.
    `is_shared`: it was computed for somebody else. `waited`: seconds in line for the device, None if it was not there.
    `read_seconds`, `work_seconds`: of all readers; of all decoders and the device, that it took.
    """

    index: int
    tensors: Tensors | None = None
    data: bytes | None = None
    failed: str | None = None
    error: BaseException | None = None
    is_shared: bool = False
    waited: float | None = None
    read_seconds: float = 0.0
    work_seconds: float = 0.0


@dataclass(eq=False)
class Ticket:
    """One request's claim to one sample. `deliver` is called at most once, from another thread."""

    index: int
    flow: Flow
    cancel: Cancel
    deliver: Callable[[Arrival], Any]
    flight: Flight | None = None


class Stage(Enum):
    """How far a flight is."""

    ORDERED = auto()
    READING = auto()
    READ = auto()
    DECODING = auto()
    READY = auto()
    DONE = auto()


@dataclass(eq=False)
class Flight:
    """One sample at one cut. Guarded by the lock of the table that it is in."""

    source: Source
    index: int
    prefix: Prefix | None
    key: bytes | None
    beginning: Beginning | None = None
    """Kept features that it begins with instead of the stored object."""
    tickets: dict[Ticket, None] = field(default_factory=dict)
    stage: Stage = Stage.ORDERED
    data: bytes | None = None
    row: Row | None = None
    read_seconds: float = 0.0
    work_seconds: float = 0.0

    def is_wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return any(not ticket.cancel.is_set for ticket in tuple(self.tickets))

    @property
    def lane(self) -> Prefix | None:
        """The prefix, or part of one, for which the device expects a row of it; None: it needs no device."""
        return self.prefix if self.beginning is None else self.beginning.part

    @property
    def flows(self) -> set[Flow]:
        return {ticket.flow for ticket in self.tickets}
