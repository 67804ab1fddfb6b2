"""Always the same batch, whatever memory there is."""

from __future__ import annotations

from collections.abc import Sequence

from hapi.errors import MemoryBudgetError
from storage_server.extraction.engine import Prefix
from storage_server.extraction.sizing import Decision, Waiting


class FixedPolicy:
    """`samples` per batch; the request's whole size if None. Running out of memory ends the request."""

    def __init__(self, samples: int | None = None) -> None:
        self._samples = samples

    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        """See BatchPolicy."""
        mine = [request.samples for request in waiting if request.prefix.key == prefix.key]
        return Decision(self._samples or max(mine, default=1), "limit")

    def failed(self, prefix: Prefix, samples: int) -> int:
        """Nobody adapts anything."""
        raise MemoryBudgetError(f"{prefix.what}: a batch of {samples} ran out of memory, and the batch is fixed.")

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        """Nothing is learned."""
