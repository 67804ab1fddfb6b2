"""Rows as a table for people, and as one line each while they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.bench.rows import Row
from hapi.units import format_bandwidth, format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One column: the key of its values, what stands above it, and how a value is written."""

    key: str
    title: str
    write: Callable[[Any], str] = str
    is_text: bool = False
    """Text is set left, numbers right."""

    def cell(self, row: Row) -> str:
        """The value of this column in `row`; a dash where it has none."""
        value = row.get(self.key)
        return "-" if value is None or value == "" else self.write(value)


def times(value: float) -> str:
    """'2.13x'"""
    return f"{value:.3g}x"


def share(value: float) -> str:
    """'86.8 %'"""
    return f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


MODEL = Column("model", "model", is_text=True)
SYSTEM = Column("system", "system", is_text=True)
BANDWIDTH = Column("bandwidth_bits_per_s", "link", format_bandwidth)
RHO = Column("rho", "rho", number)
EPOCHS = Column("epochs", "epochs")
SAMPLES = Column("samples", "samples")
SECONDS = Column("seconds", "seconds", format_seconds)
BYTES = Column("bytes", "bytes", format_bytes)
LIMIT = Column("limit_seconds", "limit", format_seconds)
STANDARD = (MODEL, BANDWIDTH, SYSTEM, EPOCHS, SAMPLES, SECONDS, BYTES, LIMIT)


def rows_table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """The rows under the columns that have at least one value; what is to be noted stands below each row's system."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = [column for column in columns if any(column.cell(row) != "-" for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        table.add_column(column.title, justify="left" if column.is_text else "right", no_wrap=True)
    if any(row.failed for row in rows):
        table.add_column("", style="bold red")
    for row in rows:
        cells = [escape(column.cell(row)) for column in shown]
        table.add_row(*cells, *(["failed"] if row.failed else []))
    return table


def grouped(rows: Sequence[Row], by: str | None) -> list[tuple[str, list[Row]]]:
    """(title, rows) of each table: one without a title, or one per value of `by`, in the order in which they came."""
    if by is None:
        return [("", list(rows))]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get(by) or ""), []).append(row)
    return list(groups.items())


def show_table(out: Console, table: Table) -> None:
    """Prints the table whole, however narrow the terminal: numbers that are cut off are worse than long lines."""
    needed = out.measure(table, options=out.options.update(width=1000)).maximum
    width = out.width
    try:
        out.width = max(needed, width)
        out.print(table, crop=False)
    finally:
        out.width = width


def row_line(row: Row, columns: Sequence[Column]) -> str:
    """One row on one line, for the log of a run: its values by name, and its note."""
    cells = [column.cell(row) if column.is_text else f"{column.title} {column.cell(row)}" for column in columns
             if column.cell(row) != "-"]  # fmt: skip
    return "  ".join([*cells, *(["FAILED"] if row.failed else []), *([f"({row.note})"] if row.note else [])])
