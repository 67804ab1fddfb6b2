"""What all figures have in common: their names, and a line with the published value and ours."""

from __future__ import annotations

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


def said(ratio: float, what: str) -> str:
    """'2.1 times as much gained'; nearly equal values are called equal."""
    return f"equal within 5 % ({ratio:.2f})" if 1 / 1.05 <= ratio <= 1.05 else f"ours {ratio:.2g} times {what}"
