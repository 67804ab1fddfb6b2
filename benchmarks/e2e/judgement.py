"""What can be said of rows once all of a situation are there: the limit, agreement of losses, and the cut chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.rows import Row, cell, compared
from benchmarks.bench.table import (
    BANDWIDTH,
    BYTES,
    EPOCHS,
    LIMIT,
    MODEL,
    RHO,
    SAMPLES,
    SECONDS,
    SYSTEM,
    Column,
    number,
    times,
)
from hapi.units import format_seconds

AGREEMENT = 1e-4
"""Relative difference of losses that float32 in another order of summation explains."""
OURS = ("mix", "single", "paper", "paper-v1")
"""Whose plan tells the limit, in this order: it is one and the same linear program in all of them."""


def epochs_text(seconds: Sequence[float]) -> str:
    """'4.10, 0.52, 0.51' seconds; of many epochs the first, and the mean of the rest."""
    if len(seconds) <= 4:
        return ", ".join(f"{value:.2f}" for value in seconds)
    rest = seconds[1:]
    return f"{seconds[0]:.2f}, then {len(rest)} of {sum(rest) / len(rest):.2f}"


def cuts_text(cuts: Sequence[Mapping[str, Any]]) -> str:
    """'62% layer3, 38% input'."""
    return ", ".join(
        cut["name"] if cut["share"] > 0.995 else f"{100 * cut['share']:.0f}% {cut['name']}" for cut in cuts
    )


COLUMNS = (
    MODEL,
    RHO,
    BANDWIDTH,
    SYSTEM,
    SAMPLES,
    EPOCHS,
    SECONDS,
    Column("cold_seconds", "cold epoch", format_seconds),
    Column("epoch_seconds", "each epoch", epochs_text),
    BYTES,
    LIMIT,
    Column("measured_over_limit", "of limit", times),
    Column("ratio_to_plain", "vs plain", times),
    Column("ratio_to_none", "vs none", times),
    Column("bytes_ratio_to_plain", "bytes vs plain", times),
    Column("start_seconds", "start-up", format_seconds),
    Column("loss_difference", "loss differs", number),
    Column("cuts", "cut", cuts_text, is_text=True),
)


def judged(rows: list[Row]) -> list[Row]:
    """The rows with `limit_seconds`, `measured_over_limit`, `loss_difference` and the ratio of bytes.

    The limit is the planner's for the tiers as they were measured in that situation, and the same for every system
    there. Losses that differ by more than rounding are noted.
    """
    limits, losses = _limits(rows), _losses(rows)
    return compared([_judge(row, limits, losses) for row in rows], PLAIN, key="bytes", name="bytes_ratio_to_plain")


def _judge(row: Row, limits: Mapping[Any, float], losses: Mapping[Any, Sequence[float]]) -> Row:
    if row.failed or row.seconds is None:
        return row
    limit = limits.get(cell(row))
    if limit:
        row = row.filled(limit_seconds=limit, measured_over_limit=row.seconds / limit)
    expected = losses.get((row.model, row.epochs, row.samples))
    if expected is None:
        return row.filled(note="no run of plain to hold the losses against")
    difference = loss_difference(row.get("losses"), expected)
    row = row.filled(loss_difference=difference)
    if difference > AGREEMENT:
        row = row.filled(note=f"losses differ from plain's by up to {difference:.2g} (relative)")
    return row


def loss_difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """Largest relative difference over the epochs; infinite where a loss is no number, or differs from zero."""
    return max(_differs(mine, other) for mine, other in zip(ours, theirs, strict=True))


def _differs(mine: float | None, other: float | None) -> float:
    if mine is None or other is None:  # JSON has nothing else for what was no number
        return math.inf
    if mine == other:
        return 0.0
    difference = abs(mine - other) / abs(other) if other else math.inf
    return math.inf if math.isnan(difference) else difference


def _limits(rows: Sequence[Row]) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for system in OURS:
        for row in rows:
            limit = row.get("plan_limit_seconds")
            if row.system == system and limit and not row.failed:
                found.setdefault(cell(row), limit)
    return found


def _losses(rows: Sequence[Row]) -> dict[Any, Sequence[float]]:
    """Of plain, by job: they do not depend on the link."""
    found: dict[Any, Sequence[float]] = {}
    for row in rows:
        if row.system == PLAIN and not row.failed:
            found.setdefault((row.model, row.epochs, row.samples), row.get("losses"))
    return found
