"""What all figures have in common: their names, and a line with the published value and ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.bench.rows import Row

SCENARIO = "published"


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Attributes:
        name, title: of its table and plot.
        scenario: of `hapi bench`, whose rows are compared.
        command: what makes them (`--json > FILE` is added where it is told).
        regime: what must be known to read the comparison.
    """

    name: str
    title: str
    scenario: str
    command: str
    regime: str


def line(figure: Figure, model: str, situation: str, published: float | None, ours: float | None, **more: Any) -> Row:
    """A row of the comparison; `published_text`, `ours_text` and `says` are what is shown."""
    return Row(SCENARIO, "ours", model).filled(
        figure=figure.title, name=figure.name, situation=situation, published=published, ours=ours, **more
    )


def missing(figure: Figure, model: str, published_text: str, command: str) -> Row:
    """The line of a network that was published and that no result of ours has."""
    return line(
        figure,
        model,
        "not run here",
        None,
        None,
        published_text=published_text,
        ours_text="no result is kept",
        says=f"missing: {command}",
        is_missing=True,
    )


def span(values: Iterable[float]) -> str:
    """'2.1x', or '0.9x to 5.3x'."""
    low, high = min(found := list(values)), max(found)
    return f"{low:.3g}x" if low == high else f"{low:.3g}x to {high:.3g}x"


def said(ratio: float, what: str) -> str:
    """'2.1 times as much gained'; nearly equal values are called equal."""
    return f"equal within 5 % ({ratio:.2f})" if 1 / 1.05 <= ratio <= 1.05 else f"ours {ratio:.2g} times {what}"
