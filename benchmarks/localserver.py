"""A storage server as a process of its own on this machine, started the way its users start it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hapi.errors import HapiError

START_SECONDS = 120.0
STOP_SECONDS = 30.0
SERVE = (sys.executable, "-m", "hapi.cli", "serve")


@dataclass(frozen=True)
class LocalServer:
    """A running `hapi serve`: its address, its process id and what it announced."""

    url: str
    pid: int
    announced: Mapping[str, Any]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class ServerDidNotStartError(HapiError):
    """`hapi serve` ended, or said nothing in time; the message has the end of its log."""

    kind = "server-did-not-start"


@contextlib.contextmanager
def local_server(
    root: str | Path,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    program: Sequence[str] = SERVE,
) -> Iterator[LocalServer]:
    """Runs `hapi serve --root ROOT` on a free loopback port for as long as the context lasts.

    Models and manifests are kept in a folder that goes away with the server, unless `options` names another. `prefix`
    stands before the command: taskset, nsenter and others that run what follows in their own process. `program` takes
    the place of `hapi serve` itself: a server with another policy.
    """
    with tempfile.TemporaryDirectory(prefix="hapi-server-") as folder:
        log = Path(folder) / "log"
        command = [*prefix, *program, "--json", "--root", str(root), "--port", "0"]
        command += ["--cache-dir", str(Path(folder) / "cache"), *options]
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on, after the clients are done
            )
        try:
            announced = _announcement(process, log)
            yield LocalServer(announced["url"], process.pid, announced)
        finally:
            _stop(process)


def _announcement(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=START_SECONDS)
    except queue.Empty:
        line = ""
    announced: dict[str, Any] = json.loads(line) if line else {}
    if "url" not in announced:
        said = announced.get("error", {}).get("message") or log.read_text(errors="replace")[-2000:].strip()
        raise ServerDidNotStartError(f"hapi serve did not start: {said}")
    return announced


def _stop(process: subprocess.Popen[str]) -> None:
    for ask in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(ask)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what it began: one that was killed leaves its compiler at work
    if process.stdout is not None:
        process.stdout.close()
