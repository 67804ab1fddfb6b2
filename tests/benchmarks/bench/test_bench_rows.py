"""Rows: the contract's keys, what is compared with what, and the table as golden text."""

from __future__ import annotations

import io
import json

from rich.console import Console

from benchmarks.bench.rows import FIELDS, Row, compared
from benchmarks.bench.table import STANDARD, Column, row_line, rows_table, show_table, times

CONTRACT = (
    "scenario system model precision bandwidth_bits_per_s rho epochs samples seconds bytes limit_seconds failed note"
)


def row(system: str, seconds: float | None = None, **values: object) -> Row:
    return Row("e2e", system, model="resnet18").filled(seconds=seconds, **values)


def test_every_row_has_the_keys_of_the_contract_and_its_own() -> None:
    document = row("mix", 2.0, tenants=3, spread=[1.0, float("nan")]).to_json()
    assert tuple(document)[: len(FIELDS)] == tuple(CONTRACT.split())
    assert document["tenants"] == 3
    assert json.loads(json.dumps(document, allow_nan=False))["spread"] == [1.0, None]


def test_notes_are_joined() -> None:
    assert row("mix", note="one").filled(note="two").note == "one; two"
    assert row("mix", note="one").filled(seconds=1.0).note == "one"


def test_ratios_are_within_one_situation() -> None:
    rows = compared(
        [row("plain", 12.0, rho=4.0), row("mix", 2.0, rho=4.0), row("plain", 6.0, rho=1.0), row("mix", 3.0, rho=1.0)],
        "plain",
    )
    assert [entry.get("ratio_to_plain") for entry in rows] == [1.0, 6.0, 1.0, 2.0]


def test_nothing_is_compared_with_what_failed_or_was_not_measured() -> None:
    rows = compared([row("plain", 12.0).filled(failed=True), row("mix", 2.0), row("none"), row("all", 0.0)], "plain")
    assert [entry.get("ratio_to_plain") for entry in rows] == [None] * 4
    rows = compared([row("plain", 12.0), row("mix", failed=True), row("none")], "plain")
    assert [entry.get("ratio_to_plain") for entry in rows] == [1.0, None, None]


def test_the_table_shows_columns_that_have_values_and_what_failed() -> None:
    rows = [
        row("plain", 12.25, bandwidth_bits_per_s=2e7, samples=96, bytes=10_400_000),
        row("mix", bandwidth_bits_per_s=2e7, samples=96, failed=True, note="[server] ended"),
    ]
    columns = [*STANDARD, Column("ratio_to_plain", "of plain", times)]
    shown = io.StringIO()
    show_table(Console(file=shown, width=30), rows_table(compared(rows, "plain"), columns))
    assert [line.rstrip() for line in shown.getvalue().splitlines() if line.strip()] == [
        " model           link   system   samples   seconds     bytes   of plain",
        " ───────────────────────────────────────────────────────────────────────────────",
        " resnet18   20 Mbit/s   plain         96    12.2 s   10.4 MB         1x",
        " resnet18   20 Mbit/s   mix           96         -         -          -   failed",
    ]
    assert row_line(rows[1], columns) == ("resnet18  link 20 Mbit/s  mix  samples 96  FAILED  ([server] ended)")
