"""`hapi train` that tells how far it is: `python -m benchmarks.faults.trainer JOB`, a job as JSON.

It prints JSON lines: `{"samples": n}` after each batch (trained so far, over all epochs), at the end the document of
`hapi train --json`, or the error, as that command does; and it ends as that does: 0, 1 or 2.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from compute_client.commands.options import open_loader
from compute_client.progress import Silent
from compute_client.train import HeadTrainer
from hapi.allocator import keep_freed_memory
from hapi.console import emit
from hapi.errors import HapiError


class Lines(Silent):
    """A line per batch."""

    def __init__(self) -> None:
        self._before = self._epoch = 0

    def batch_done(self, epoch: int, loss: float, samples: int) -> None:
        self._epoch = samples
        emit({"samples": self._before + samples})

    def epoch_done(self, epoch: int, loss: float, accuracy: float | None, seconds: float) -> None:
        self._before, self._epoch = self._before + self._epoch, 0


def train(data: str, model: str, epochs: int, **options: Any) -> dict[str, Any]:
    """Trains a linear head, keeping no features: every epoch needs server, link and store. `options`: of a loader."""
    with open_loader(data, model, epochs=epochs, cache_bytes="0", **options) as loader:
        return HeadTrainer(loader, epochs=epochs, val_split=0.0).fit(Lines()).to_json()


def main() -> None:
    """One training."""
    keep_freed_memory()
    try:
        emit(train(**json.loads(sys.argv[1])))
    except HapiError as error:
        emit({"error": {"kind": error.kind, "message": str(error)}})
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
