"""From the batches of a run to what it reached in each phase of its link."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SETTLING_SPANS = 5
"""Spans that are begun after a change of the link and do not count. Those that were under way do not count either."""

LEAST_PART = 0.25
"""Part of a phase that must be left once it has settled: batches that waited come together, and tell no rate."""


@dataclass(frozen=True)
class Batch:
    """A batch that the training loop was done with: when (seconds since 1970), and totals until then.

    Attributes:
        samples: yielded.
        arrived: samples of the spans that are whole here; they may wait for the client, or for those before them.
        bytes: received from the server.
        changes: of the plan.
    """

    at: float
    samples: int
    arrived: int
    bytes: int
    changes: int


@dataclass(frozen=True)
class Reached:
    """What a phase gave once it had settled: seconds, and what came in them; changes of the plan in the whole phase."""

    seconds: float
    samples: int
    bytes: int
    changes: int
    settling_seconds: float

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds


def read_batches(progress: Path) -> list[Batch]:
    """The whole lines of a client's file; nothing while there is none."""
    if not progress.exists():
        return []
    lines = progress.read_text().splitlines(keepends=True)
    return [Batch(**json.loads(line)) for line in lines if line.endswith("\n")]


def reached(batches: Sequence[Batch], begin: float, end: float, span: int, in_flight: int) -> Reached | None:
    """Between two moments, without what was begun before and without the first spans; None if too little is left.

    `span` are the samples of one, `in_flight` how many are under way at once.
    """
    before = [batch for batch in batches if batch.at <= begin]
    inside = [batch for batch in batches if begin < batch.at <= end]
    if not inside:
        return None
    begun = before[-1].arrived + in_flight * span if before else 0
    settled = [batch for batch in inside if batch.samples >= begun + SETTLING_SPANS * span]
    if not settled or settled[-1].at - settled[0].at < LEAST_PART * (end - begin):
        return None
    first, last = settled[0], settled[-1]
    return Reached(
        seconds=last.at - first.at,
        samples=last.samples - first.samples,
        bytes=last.bytes - first.bytes,
        changes=inside[-1].changes - (before[-1].changes if before else 0),
        settling_seconds=first.at - begin,
    )


def unsettled(batches: Sequence[Batch], begin: float, end: float) -> Reached:
    """All that came between two moments, for a phase that never settled."""
    before = [batch for batch in batches if batch.at <= begin] or [Batch(begin, 0, 0, 0, 0)]
    last = max([batch for batch in batches if batch.at <= end] or before, key=lambda batch: batch.samples)
    return Reached(
        seconds=end - begin,
        samples=last.samples - before[-1].samples,
        bytes=last.bytes - before[-1].bytes,
        changes=last.changes - before[-1].changes,
        settling_seconds=0.0,
    )
