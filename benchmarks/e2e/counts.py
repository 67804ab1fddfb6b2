"""How many photographs each network trains on: as many as were asked for, or as make a job of sensible length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benchmarks.testbed.testbed import Testbed
from hapi.errors import InputError

TARGET_SECONDS = 12.0
"""Of plain's computing in an epoch: long beside what a job spends on starting, short beside a bench."""
LEAST, MOST, STEP = 48, 1024, 16
LEAST_BATCHES, MOST_BATCH = 6, 32
"""Of an epoch, and samples of a batch: a worker of plain's loader makes a whole one, so that of two nothing overlaps,
and plain would take the sum of its link and its compute time."""
PACE_SECONDS = 300.0


def parse_samples(texts: Sequence[str]) -> tuple[int | None, dict[str, int]]:
    """(for every network, for single ones) from `--samples 128 --samples torchvision:vit_b_16=48`."""
    every, single = None, {}
    for text in texts:
        model, _, count = text.rpartition("=")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--samples {text!r}: say a number of photographs, or MODEL=NUMBER.")
        if model:
            single[_spelled(model)] = int(count)
        else:
            every = int(count)
    return every, single


def sample_counts(
    models: Sequence[str], asked: Sequence[str], default: int | None, pace: Callable[[str], float]
) -> dict[str, int]:
    """Model -> photographs. What was not asked for, and has no `default`, follows from `pace(model)`: plain's seconds
    per photograph. InputError for a count of a network that is not run.
    """
    every, single = parse_samples(asked)
    if unknown := [model for model in single if model not in map(_spelled, models)]:
        raise InputError(f"--samples {unknown[0]}=...: that network is not run; there are {', '.join(models)}.")
    every = every or default
    return {model: single.get(_spelled(model)) or every or fitting(pace(model)) for model in models}


def fitting(seconds_per_sample: float) -> int:
    """So many photographs that plain computes for `TARGET_SECONDS`; 48 to 1024, in steps of 16."""
    wanted = round(TARGET_SECONDS / max(seconds_per_sample, 1e-9) / STEP) * STEP
    return min(max(wanted, LEAST), MOST)


def batch_size(samples: int) -> int:
    """Of training, where none is given: 32, or fewer where so few photographs would not make enough batches.

    How many there are is not known (0) of servers elsewhere: then it is 32.
    """
    return min(MOST_BATCH, max(1, samples // LEAST_BATCHES)) if samples else MOST_BATCH


def measured_pace(bed: Testbed, model: str, weights: str) -> float:
    """Plain's seconds per photograph on the compute host, decoding included; ProgramFailedError if it cannot run."""
    command = [sys.executable, "-m", "benchmarks.e2e.pace", model, weights]
    return float(bed.run(bed.compute, command, seconds=PACE_SECONDS).document["seconds_per_sample"])


def _spelled(model: str) -> str:
    return model if ":" in model else f"torchvision:{model}"
