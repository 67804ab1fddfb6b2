"""A row of a benchmark: one system in one situation, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hapi.console import finite

CELL = ("scenario", "model", "precision", "bandwidth_bits_per_s", "rho", "epochs", "samples")
"""Rows that agree in these are the same situation, met by different systems: they may be compared."""


@dataclass(frozen=True)
class Row:
    """One system in one situation. None is what does not apply, or was not measured.

    Attributes:
        system: `plain`, `none`, `all`, `static`, `paper`, `single`, `mix`, or another's own name.
        model: as in `--model`, without `torchvision:`.
        bandwidth_bits_per_s: of the link between the hosts, as it was set; None if nothing limited it.
        rho: link time of the plain baseline over its compute time, at that bandwidth.
        samples: samples per epoch.
        seconds: what the scenario times (its docstring says what); bytes: what crossed the link in that time.
        limit_seconds: the least that the planner's linear program gives any split execution, from what was measured
            beforehand; a machine that is faster meanwhile may beat it.
        failed: the system gave no result; `note` says why.
        extra: what the scenario adds; in JSON these are keys of the row like the others.
    """

    scenario: str
    system: str
    model: str = ""
    precision: str = "float32"
    bandwidth_bits_per_s: float | None = None
    rho: float | None = None
    epochs: int | None = None
    samples: int | None = None
    seconds: float | None = None
    bytes: int | None = None
    limit_seconds: float | None = None
    failed: bool = False
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """The value of a field or of an extra; None if there is none."""
        return getattr(self, key) if key in FIELDS else self.extra.get(key)

    def filled(self, **values: Any) -> Row:
        """This row with more values; those that are no fields become extras. Notes are joined."""
        if self.note and values.get("note"):
            values["note"] = f"{self.note}; {values['note']}"
        own = {key: value for key, value in values.items() if key in FIELDS}
        extra = {key: value for key, value in values.items() if key not in FIELDS}
        return replace(self, **own, extra={**self.extra, **extra})

    def to_json(self) -> dict[str, Any]:
        """One flat object; numbers that JSON does not have become null."""
        own = {key: getattr(self, key) for key in FIELDS}
        return {key: finite(value) for key, value in {**own, **self.extra}.items()}


def row_from_json(document: Any) -> Row:
    """The row that `Row.to_json` wrote; ValueError for what is none."""
    if not isinstance(document, Mapping) or not all(
        isinstance(document.get(key), str) for key in ("scenario", "system")
    ):
        raise ValueError("a row must be an object with a scenario and a system")
    return Row(scenario=document["scenario"], system=document["system"]).filled(
        **{key: value for key, value in document.items() if key not in ("scenario", "system")}
    )


FIELDS = tuple(entry.name for entry in fields(Row) if entry.name != "extra")
"""The keys that every row has, in order."""


def cell(row: Row, same: Sequence[str] = CELL) -> tuple[Any, ...]:
    """What identifies the situation of a row."""
    return tuple(row.get(key) for key in same)


def compared(
    rows: Iterable[Row], against: str, *, key: str = "seconds", name: str | None = None, same: Sequence[str] = CELL
) -> list[Row]:
    """The rows, each with `ratio_to_<against>`: that system's `key` over its own; 2.0 is half as much as theirs.

    Only rows of one situation are compared, and only where both measured something.
    """
    rows = list(rows)
    name = name or f"ratio_to_{against}"
    base = {cell(row, same): row.get(key) for row in rows if row.system == against and not row.failed}
    return [
        row.filled(**{name: theirs / mine})
        if (theirs := base.get(cell(row, same))) is not None and not row.failed and (mine := row.get(key))
        else row
        for row in rows
    ]
