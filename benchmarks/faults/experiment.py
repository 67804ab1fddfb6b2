"""Disturbs trainings one after the other, and makes a row of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines.systems import PLAIN
from benchmarks.bench.options import check_known
from benchmarks.bench.photographs import photographs
from benchmarks.bench.run import Bench
from benchmarks.bench.table import MODEL, SECONDS, SYSTEM, Column, number
from benchmarks.e2e.judgement import cuts_text
from benchmarks.faults.faults import FAULTS, QUICK
from benchmarks.faults.lab import OURS, TENANTS, Lab, Task
from benchmarks.faults.plots import plots
from benchmarks.faults.server import KillableServer
from benchmarks.testbed.services import start_store
from benchmarks.testbed.testbed import open_testbed
from hapi.errors import InputError
from hapi.units import format_seconds, parse_bandwidth

SYSTEMS = (OURS, PLAIN)
SAMPLES, QUICK_SAMPLES = 192, 64


def yes_or_no(value: bool) -> str:
    """For the table."""
    return "yes" if value else "no"


def more_or_less(seconds: float) -> str:
    """'+3.4 s'; on a machine that does other work a disturbed training may even be the faster one."""
    return f"{seconds:+.1f} s"


COLUMNS = (
    Column("fault", "fault", is_text=True),
    MODEL,
    SYSTEM,
    Column("survived", "survived", yes_or_no, is_text=True),
    SECONDS,
    Column("lost_seconds", "lost", more_or_less),
    Column("loss_difference", "losses differ", number),
    Column("retries", "retries"),
    Column("failed_samples", "left out"),
    Column("exit_status", "status"),
    Column("end_seconds", "ended after", format_seconds),
    Column("cuts", "cut", cuts_text, is_text=True),
)


@dataclass(frozen=True)
class Settings:
    """What is disturbed, and how. Empty tuples and None are the defaults, smaller ones with `quick`."""

    model: str = "torchvision:mobilenet_v2"
    weights: str = "none"
    faults: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    bandwidth: str = "200mbit"
    pushdown: str = "auto"
    epochs: int = 2
    samples: int | None = None
    batch_size: int = 16
    data: str | None = None
    seed: int = 0
    testbed: str = "auto"
    quick: bool = False

    def chosen(self) -> list[tuple[str, str]]:
        """(fault, system) in the order in which they are tried; the undisturbed ones always, and first."""
        names = [fault.name for fault in FAULTS]
        for name in self.faults:
            if not any(name in known for known in names):
                raise InputError(f"fault {name!r}: is in none of {'; '.join(names)}.")
        check_known("system", self.systems, SYSTEMS)
        systems = self.systems or (SYSTEMS[:1] if self.quick else SYSTEMS)
        wanted = self.faults or (QUICK if self.quick else tuple(names))
        return [
            (fault.name, system)
            for fault in FAULTS
            if fault is FAULTS[0] or any(part in fault.name for part in wanted)
            for system in fault.systems
            if system in systems
        ]


def run(settings: Settings, *, report: Path | None = None, as_json: bool = False) -> None:
    """All faults: a table, and JSON and a report where asked for."""
    chosen, rate = settings.chosen(), parse_bandwidth(settings.bandwidth)
    known = {fault.name: fault for fault in FAULTS}
    model = settings.model if ":" in settings.model else f"torchvision:{settings.model}"
    count = settings.samples or (QUICK_SAMPLES if settings.quick else SAMPLES)
    with (
        Bench(
            "faults",
            as_json=as_json,
            report=report,
            columns=COLUMNS,
            title="Trainings that are disturbed",
            plots=plots(),
        ) as bench,
        photographs(settings.data, count, seed=settings.seed) as folder,
        open_testbed(settings.testbed) as bed,
    ):
        for remark in bed.remarks:
            bench.remark(remark)
        bench.remark("no features are kept, on either side: every epoch needs server, link and store")
        store = start_store(bed, folder)
        for remark in store.remarks:
            bench.remark(remark)
        with KillableServer(bed, store, TENANTS) as server:
            bed.link.shape(rate)
            task = Task(
                model, settings.weights, settings.epochs, settings.batch_size, settings.seed, settings.pushdown,
                store.samples,
            )  # fmt: skip
            lab = Lab(bed, store, folder, server, task, rate)
            for name, system in chosen:
                with bench.trial(
                    system=system,
                    fault=name,
                    model=model.removeprefix("torchvision:"),
                    bandwidth_bits_per_s=rate,
                    epochs=settings.epochs,
                    samples=store.samples,
                    batch_size=settings.batch_size,
                ) as trial:
                    server.start()  # a fault before may have left it dead
                    trial.measured(**known[name].run(lab, system))
