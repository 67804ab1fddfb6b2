"""One run of a scenario: rows are shown as they come; at the end come table, JSON, report and exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.markup import escape

from benchmarks.bench import machine
from benchmarks.bench.ending import as_by_ctrl_c
from benchmarks.bench.headline import headline
from benchmarks.bench.rows import CELL, Row, compared
from benchmarks.bench.table import STANDARD, Column, grouped, row_line, rows_table, show_table
from hapi.cli import INTERRUPTED
from hapi.console import console, emit, say
from hapi.errors import HapiError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAILED = 1


@dataclass(frozen=True)
class Plot:
    """A picture of the report: `draw(figure, rows)` fills an empty matplotlib figure; called only for a report."""

    name: str
    title: str
    draw: Callable[[Figure, Sequence[Row]], None]
    caption: str = ""
    size: tuple[float, float] = (9.0, 4.5)
    """Inches."""


class Trial:
    """The row that is being measured; `measured` gives it its values."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.is_measured = False

    def measured(self, **values: Any) -> None:
        """Fields of Row by name; other names become extras. May be called several times."""
        self.row = self.row.filled(**values)
        self.is_measured = True


class Bench:
    """Collects the rows of one run.

        with Bench("wire", as_json=as_json, report=report, columns=[...]) as bench:
            for codec in codecs:
                with bench.trial(system=codec, model="resnet18") as trial:
                    trial.measured(seconds=..., bytes=..., ratio=...)

    A trial that raises becomes a failed row, and the next one runs; at the end of the `with` the table is shown, the
    report written, the JSON printed, and the command ends with status 1 if a row failed. Ctrl-C, SIGTERM and SIGHUP are
    raised where the scenario stands, so that its own `with` and `finally` take down what it started; what was measured
    until then is shown and written all the same, and the command ends with 130.
    """

    def __init__(
        self,
        scenario: str,
        *,
        as_json: bool = False,
        report: Path | None = None,
        columns: Sequence[Column] = STANDARD,
        compare_with: Sequence[str] = (),
        same: Sequence[str] = CELL,
        title: str | None = None,
        plots: Sequence[Plot] = (),
        finish: Callable[[list[Row]], list[Row]] | None = None,
        shown: Callable[[Row], bool] = lambda row: True,
        table_by: str | None = None,
    ) -> None:
        """`compare_with` are the systems to which each row gets a ratio of seconds, within rows that agree in `same`.

        `finish` may add to the rows what can only be said when all are there; it runs before the ratios. Rows that are
        not `shown` are left out of the tables, not of the JSON and the plots. With `table_by` there is a table for
        every value that this key of the rows has.
        """
        self.scenario, self.title = scenario, title or f"hapi bench {scenario}"
        self.columns, self.compare_with, self.same = columns, compare_with, same
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self.told: list[str] = []
        self.is_unfinished = False
        self.plots = list(plots)
        self.table_by = table_by
        self.machine = machine.describe()
        self._as_json, self._report, self._finish, self._shown = as_json, report, finish, shown
        self.out = console(as_json)
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._report is not None:
            from benchmarks.bench.report import check_folder

            check_folder(self._report)  # before hours of measuring, not after
        self._signals.enter_context(as_by_ctrl_c())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.close()
        is_interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if kind is not None:
            self.is_unfinished = True
            how = "was interrupted" if is_interrupted else f"ended early ({kind.__name__}: {error})"
            self.remark(f"the run {how}: what it had not measured yet is missing")
        self._complete()
        for title, rows in grouped(self.shown_rows, self.table_by) if self.rows else ():
            if title:
                self.say(f"\n{title}")
            show_table(self.out, rows_table(rows, self.columns))
        for row in self.shown_rows:
            if row.note:
                self.say(f"  {row.system} {row.model}: {row.note}")
        for remark in self.remarks:
            self.say(f"  {remark}")
        for sentence in [*self.told, *headline(self.shown_rows)]:
            self.say(sentence)
        is_reported = self._write_report()
        if kind is not None and not is_interrupted:
            return
        if self._as_json:
            emit(self.to_json())
        if is_interrupted:  # a KeyboardInterrupt would have the command line print a document of its own
            raise SystemExit(INTERRUPTED)
        if any(row.failed for row in self.rows) or not self.rows or not is_reported:
            raise typer.Exit(FAILED)

    @contextlib.contextmanager
    def trial(self, **keys: Any) -> Iterator[Trial]:
        """Measures one row; `keys` are what is known of it beforehand (system, model, bandwidth, ...)."""
        trial = Trial(self._row(keys))
        try:
            yield trial
            if not trial.is_measured:
                trial.row = trial.row.filled(failed=True, note="nothing was measured")
        except Exception as error:
            trial.row = _failed(trial.row, error)
        self.add(trial.row)

    @contextlib.contextmanager
    def step(self, **keys: Any) -> Iterator[None]:
        """Work of which several rows come, such as all of one network's: what breaks there is one failed row with these
        keys, and the run goes on after the block."""
        try:
            yield
        except Exception as error:
            self.add(_failed(self._row(keys), error))

    def add(self, row: Row) -> None:
        """Adds a row, and shows it."""
        self.rows.append(row)
        self.say(row_line(row, self.columns))

    @property
    def shown_rows(self) -> list[Row]:
        """The rows of the tables."""
        return [row for row in self.rows if self._shown(row)]

    def say(self, text: str) -> None:
        """Tells how far the run is."""
        say(self.out, escape(text))

    def remark(self, text: str) -> None:
        """Keeps something that must be printed with the result, such as what the testbed cannot do."""
        if text not in self.remarks:
            self.remarks.append(text)

    def tell(self, sentence: str) -> None:
        """Puts a sentence on what was found at the top of the report, and at the end of what is printed."""
        self.told.append(sentence)

    def to_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "scenario": self.scenario,
            "machine": self.machine,
            "remarks": self.remarks,
            **({"interrupted": True} if self.is_unfinished else {}),
            "rows": [row.to_json() for row in self.rows],
        }

    def _write_report(self) -> bool:
        """Whether there is what was asked for: a full disk or a picture that cannot be drawn costs no row."""
        if self._report is None or not self.rows:
            return True
        from benchmarks.bench.report import write_report

        try:
            self.say(f"report: {write_report(self, self._report)}")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.remark(f"the report in {self._report} is not whole: {type(error).__name__}: {error}")
            self.say(f"  {self.remarks[-1]}")
            return False
        return True

    def _row(self, keys: dict[str, Any]) -> Row:
        return Row(scenario=self.scenario, system=keys.pop("system", "")).filled(**keys)

    def _complete(self) -> None:
        if self._finish is not None:
            self.rows = self._finish(self.rows)
        for system in self.compare_with:
            self.rows = compared(self.rows, system, same=self.same)


def _failed(row: Row, error: Exception) -> Row:
    """The row with what went wrong; where it came from is told as well if that was nobody's plan."""
    if os.environ.get("HAPI_DEBUG") or not isinstance(error, HapiError):
        traceback.print_exc(file=sys.stderr)
    told = str(error) if isinstance(error, HapiError) else f"{type(error).__name__}: {error}"
    return row.filled(failed=True, note=told)
