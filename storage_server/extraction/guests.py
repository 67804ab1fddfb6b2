"""Small batches that do not wait for the end of a large one: they are computed between two of its operations.

A batch of a large job takes as long as its size says, and so long whoever wants one image would wait, besides twice or
four times that while larger batches are tried. The pass pauses for it instead (hapi.model.pauses). Whose turn it is
decides: a guest is what would be next anyway. All guests of a batch together take at most the part of it that one who
wants few may ask for, and must fit into memory beside it. A batch of so few that this part is none does not pause: it
is short, and two networks that take turns within it would only push each other out of the processor's caches. Compiled
code has no operations to pause between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from storage_server.extraction.engine import Prefix
from storage_server.extraction.rows import Batch
from storage_server.extraction.sizing import FEW

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guests:
    """How guests are run, and whether a guest fits.

    Attributes:
        run: computes a batch and sees to it that every row of it is delivered; False, with nothing done, if memory ran
            out.
        fit: whether batches, each of a prefix and so many samples, fit into memory together.
    """

    run: Callable[[Batch], bool]
    fit: Callable[..., bool]


class Visit:
    """The guests of one batch. Belongs to the device's thread."""

    def __init__(self, host: Batch, guests: Guests) -> None:
        self._host, self._guests = host, guests
        self._allowed = host.row_seconds * (len(host.rows) // FEW)
        self.seconds = 0.0
        """What guests took."""
        self.left: list[Batch] = []
        """Guests that memory was too short for: to be run after the host."""

    @property
    def may_take(self) -> float:
        """Predicted seconds for which further guests may be let in."""
        return 0.0 if self.left else self._allowed

    def fits(self, prefix: Prefix, samples: int) -> bool:
        """Whether so many samples fit beside the host."""
        return self._guests.fit((self._host.prefix, len(self._host.rows)), (prefix, samples))

    def run(self, guest: Batch, clock: Callable[[], float]) -> float | None:
        """The seconds that the guest took; None if it is to be run later. Never raises."""
        self._allowed -= guest.row_seconds * len(guest.rows)
        started = clock()
        try:
            is_done = self._guests.run(guest)
        except Exception:
            log.exception("a batch between the operations of another failed")
            is_done = True
        seconds = clock() - started
        self.seconds += seconds
        if not is_done:
            self.left.append(guest)
            return None
        return seconds
