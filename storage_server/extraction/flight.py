"""One sample on its way, with the tickets of those who wait for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from storage_server.extraction.engine import Prefix
from storage_server.extraction.loading import Source
from storage_server.extraction.mail import Ticket
from storage_server.extraction.rows import Row
from storage_server.extraction.threads import Pieces, WorkerThreads
from storage_server.features.beginnings import Beginning
from storage_server.scheduling.fair import Flow, Place


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
    flows: Counter[Flow] = field(default_factory=Counter)
    """Those of its tickets, and how many each has."""
    stage: Stage = Stage.ORDERED
    threads: WorkerThreads | None = None
    place: Place[Pieces] | None = None
    """Where its reading or decoding waits for a turn, and of which threads."""
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
