"""Processor time of a host: of all that was started there, also of programs that hide where they belong."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.testbed.testbed import open_testbed

WORK = "sum(range(30_000_000)); print('done', flush=True); input()"
STARTS = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {WORK!r}], env={{}}).returncode)"


def test_what_a_program_starts_counts_with_it() -> None:
    with open_testbed("relay") as bed:
        command, environment = bed.storage.command(sys.executable, "-c", STARTS), bed.storage.environment()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            assert bed.cpu_seconds(bed.storage) > 0.15
            assert bed.cpu_seconds(bed.compute) == 0.0
            process.communicate(b"\n", timeout=60)
            assert process.returncode == 0
