"""`hapi bench all`: every scenario, one after the other, into one folder of results."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench
from benchmarks.bench.table import SECONDS, Column
from hapi.errors import InputError

if TYPE_CHECKING:
    from benchmarks.bench.run import Trial

FIRST = ("e2e", "sweep", "memory", "tenants")
LAST = ("simulate", "check", "published")
CHECK = "check"
DEVICE = "device"
LEFT_OUT = ("all", "memory-model")
MOST_SECONDS, QUICK_MOST_SECONDS = 4 * 3600.0, 900.0
"""After which a scenario is ended as by Ctrl-C, with what it has: the others shall come."""
END_SECONDS = 120.0
"""For what it does then."""
COLUMNS = (
    Column("system", "scenario", is_text=True),
    SECONDS,
    Column("rows", "rows"),
    Column("rows_failed", "rows failed"),
    Column("command", "command", is_text=True),
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("all")(run_all)


def run_all(
    results: Annotated[Path, typer.Option(metavar="DIR", help="Each scenario gets a folder of its own in it.")] = Path(
        "benchmarks/results"
    ),
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this; may be repeated. `check` is `simulate --check`.")
    ] = None,
    quick: options.Quick = False,
    as_json: options.AsJson = False,
) -> None:
    """Run every scenario but `memory-model`, each as a process of its own; keep page, pictures and rows in DIR.

    Where the published figures need more than a scenario's defaults (networks and links), it is run with those. At the
    end DIR's README.md is written: what is there, from which command, machine, day and commit. A scenario that fails
    is a failed row here, and the next one runs; one that takes too long (four hours, a quarter of an hour with --quick)
    is ended with the rows that it has. Without a GPU `device` is left out. With --quick each scenario that has that
    option is run with it.
    """
    from benchmarks.bench.index import write_index
    from hapi.units import format_seconds

    runs = planned(results, quick)
    options.check_known("--scenario", scenario, runs)
    try:
        results.mkdir(parents=True, exist_ok=True)  # the page is written there though no scenario wrote anything
    except OSError as error:
        raise InputError(f"--results {results}: not a folder that can be written ({error.strerror}).") from error
    with Bench("all", as_json=as_json, columns=COLUMNS, title="All scenarios") as bench:
        try:
            for name, words in runs.items():
                if scenario and name not in scenario:
                    continue
                if name == DEVICE and not scenario and not has_gpu():
                    bench.remark("device: left out, as torch finds no CUDA device here (--scenario device tries it)")
                    continue
                command = ["bench", *words, "--report", str(results / name)]
                bench.say(f"hapi {shlex.join(command)}")
                with bench.trial(system=name, command=f"hapi {shlex.join(command)}") as trial:
                    run_scenario(trial, command, results / name, QUICK_MOST_SECONDS if quick else MOST_SECONDS)
        finally:
            if bench.rows:
                total = format_seconds(sum(row.seconds or 0.0 for row in bench.rows))
                bench.tell(f"{len(bench.rows)} scenarios took {total}.")
                bench.say(f"wrote {write_index(results)}")


def has_gpu() -> bool:
    """Whether there is what `hapi bench device` measures by default."""
    import torch

    return torch.cuda.is_available()


def planned(results: Path, quick: bool) -> dict[str, list[str]]:
    """Name -> the words after `hapi bench`, in the order in which they run."""
    from benchmarks.published import adaptation, times
    from benchmarks.scenarios import names

    known = [name for name in names() if name not in LEFT_OUT] + [CHECK]
    order = [*FIRST, *(name for name in known if name not in (*FIRST, *LAST)), *LAST]
    more = {
        "e2e": shlex.split(times.FIGURE.command)[3:],
        "memory": shlex.split(adaptation.FIGURE.command)[3:],
        "published": ["--results", str(results)],
    }
    runs = {}
    for name in order:
        if name in known:
            words = ["simulate", "--check"] if name == CHECK else [name]
            is_quick = quick and _has_quick(words[0])
            runs[name] = [*words, *(["--quick"] if is_quick else []),
                          *(more.get(name, []) if not is_quick else [])]  # fmt: skip
    return runs


def _has_quick(scenario: str) -> bool:
    from benchmarks.scenarios import Scenarios

    command = Scenarios().get_command(None, scenario)
    return any("--quick" in parameter.opts for parameter in command.params)


def run_scenario(trial: Trial, words: list[str], folder: Path, most_seconds: float = MOST_SECONDS) -> None:
    """Runs one scenario; what it prints goes to the standard error stream. ProgramFailedError if it left no rows."""
    from benchmarks.bench.kept import ROWS, read
    from benchmarks.testbed.processes import ProgramFailedError, end_group

    before = (folder / ROWS).stat().st_mtime_ns if (folder / ROWS).exists() else None
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hapi.cli", *words], stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    try:
        status, told = _ended(process, most_seconds)
    finally:
        end_group(process)
    trial.measured(seconds=time.perf_counter() - begun)
    if not (folder / ROWS).exists() or (folder / ROWS).stat().st_mtime_ns == before:
        raise ProgramFailedError(f"{told} and wrote no rows; what it said is above")
    kept = read(folder / ROWS)
    failed = sum(row.failed for row in kept.rows)
    trial.measured(rows=len(kept.rows), rows_failed=failed)
    if status:
        trial.measured(failed=True, note=told)


def _ended(process: subprocess.Popen[bytes], most_seconds: float) -> tuple[int, str]:
    """Its exit status, and how it ended in words. Ctrl-C here is passed on, and raised once it has written its rows."""
    try:
        status = process.wait(most_seconds)
        return status, f"it ended with {status}"
    except subprocess.TimeoutExpired:
        return _interrupted(process), f"it took longer than {most_seconds:.0f} s and was ended"
    except KeyboardInterrupt:
        _interrupted(process)
        raise


def _interrupted(process: subprocess.Popen[bytes]) -> int:
    """Its exit status once it was asked to end: its own, or that of being killed where it does not.

    By SIGTERM, which a Bench takes for Ctrl-C: SIGINT is ignored by what a script runs in the background.
    """
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
