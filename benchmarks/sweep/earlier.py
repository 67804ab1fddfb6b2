"""What earlier runs of the sweep left in the folder of a report: a sweep may be measured a network at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.kept import ROWS, read
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.sweep.judgement import EVERY
from hapi.errors import InputError
from hapi.machine import cpu_name


@dataclass(frozen=True)
class Earlier:
    """Rows of networks that were measured before; none of failures, nor of what sums up.

    Each has the time at which its run began, `started`, and that run's `command`: its data and settings may be others.
    """

    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, report: Path | None) -> Earlier:
        """Of a report's folder; nothing where it has no rows yet.

        A network with a row that failed is measured again. InputError without a folder, and for rows of another bench
        or of another kind of processor.
        """
        if report is None:
            raise InputError("--resume: say with --report DIR which earlier rows to go on from.")
        if not (report / ROWS).exists():
            return cls()
        kept = read(report / ROWS)
        if kept.scenario != "sweep":
            raise InputError(f"--report {report}: its rows are those of {kept.scenario!r}. Name another folder.")
        if kept.machine.get("cpu") != cpu_name():
            raise InputError(
                f"--resume: the rows in {report} were measured on {kept.machine.get('cpu')!r}, this machine has "
                f"{cpu_name()!r}. Name another folder."
            )
        broken = {row.model for row in kept.rows if row.failed}
        rows = (row for row in kept.rows if row.model not in {EVERY, *broken})
        origin = {"started": kept.machine.get("started"), "command": kept.command}
        return cls(tuple(row if row.get("started") else row.filled(**origin) for row in rows))

    def give(self, bench: Bench) -> None:
        """Puts the rows where new ones will be added, and says of when they are, and from which command."""
        bench.rows.extend(self.rows)
        for began, command in dict.fromkeys((row.get("started"), row.get("command")) for row in self.rows):
            models = dict.fromkeys(row.model for row in self.rows if row.get("started") == began)
            told = f" ({command})" if command else ""
            bench.remark(f"measured by an earlier run, which began at {began}: {', '.join(models)}{told}")

    def has(self, model: str, rates: Sequence[float], policies: Sequence[str]) -> bool:
        """Whether everything is known of a network."""
        known = {(row.system, row.bandwidth_bits_per_s) for row in self.rows if row.model == model}
        return all((policy, rate) in known for policy in policies for rate in rates)
