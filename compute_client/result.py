"""What a training run gave and took."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from hapi.plan import Plan


@dataclass(frozen=True)
class TrainResult:
    """What a training run gave and took.

    Attributes:
        samples: of the dataset; `train_samples` and `val_samples` are its two parts.
        seconds: the whole run, with planning, upload and validation; `setup_seconds` of it before the first epoch.
        epoch_seconds: per epoch, reading and training, without validation.
        losses: per epoch, mean training loss per sample; `final_loss` is the last.
        accuracies: after each epoch, the part of the validation samples that were right; `accuracy` is the last, None
            without validation samples.
        bytes_received, requests, retries: from and to the server.
        cached_samples: samples, of all epochs and validations, whose features were kept from before.
        peak_rss_bytes: of this process since it began.
        stages: what the run's seconds went to here, validation included: `waiting` of the training loop for batches,
            `suffix` of the compute device, `decode` summed over threads. They overlap.
        plan, first_plan: the last one, whose history tells what changed, and the one that the run began with.
    """

    samples: int
    train_samples: int
    val_samples: int
    epochs: int
    seconds: float
    setup_seconds: float
    epoch_seconds: list[float]
    losses: list[float]
    final_loss: float
    accuracies: list[float]
    accuracy: float | None
    bytes_received: int
    requests: int
    retries: int
    failed_samples: int
    cached_samples: int
    peak_rss_bytes: int
    classes: list[str]
    stages: dict[str, float]
    plan: Plan = field(repr=False)
    first_plan: Plan = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "plan": self.plan.to_json(), "first_plan": self.first_plan.to_json()}


def peak_rss_bytes() -> int:
    """The most memory that this process had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
