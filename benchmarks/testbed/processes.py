"""Programs under measurement: run to their end, for the one JSON document that they print."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hapi.errors import HapiError

STOP_SECONDS = 10.0
SAID_CHARACTERS = 600


class ProgramFailedError(HapiError):
    """A program that was measured ended with an error, gave no result, or took too long."""

    kind = "program-failed"


@dataclass(frozen=True)
class Outcome:
    """What a program printed, and what it took: seconds from start to end, and of processors (with its children)."""

    document: dict[str, Any]
    seconds: float
    cpu_seconds: float


def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_seconds: float | None = None
) -> Outcome:
    """Runs a program that prints one JSON document; ProgramFailedError says how else it ended.

    It leads a group of processes of its own, which is ended with it: also by Ctrl-C here.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        try:
            status, usage = _wait(process, begun, timeout_seconds)
        finally:
            end_group(process)
        seconds = time.perf_counter() - begun
        out.seek(0)
        err.seek(0)
        printed, said = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    name = " ".join(command)
    if status is None:
        raise ProgramFailedError(f"{name}: took longer than {timeout_seconds:.0f} s and was ended.")
    document = _last_object(printed)
    if status != 0 or document is None:
        told = (document or {}).get("error", {}).get("message") or said.strip()[-SAID_CHARACTERS:] or "(no words)"
        raise ProgramFailedError(f"{name}: ended with {status}: {told}")
    return Outcome(document, seconds, usage)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a group, and everything in that group."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, ask)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS if ask == signal.SIGTERM else None)
            if ask == signal.SIGKILL or process.returncode is not None:
                return


def _wait(process: subprocess.Popen[Any], begun: float, timeout_seconds: float | None) -> tuple[int | None, float]:
    """(exit status, or None after the timeout; processor seconds)."""
    pause = 0.002
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_utime + usage.ru_stime
        if timeout_seconds is not None and time.perf_counter() - begun > timeout_seconds:
            return None, 0.0
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def _last_object(text: str) -> dict[str, Any] | None:
    for line in reversed(text.strip().splitlines()):
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                return document
    return None
