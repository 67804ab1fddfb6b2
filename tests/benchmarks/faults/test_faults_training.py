"""Trainings as processes: how far they are, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.bench.photographs import photographs
from benchmarks.faults import server as faults_server
from benchmarks.faults.server import KillableServer
from benchmarks.faults.trainer import train
from benchmarks.faults.training import Training
from benchmarks.localserver import LocalServer, is_alive
from benchmarks.testbed.host import Host
from benchmarks.testbed.processes import ProgramFailedError
from benchmarks.testbed.services import Store

DOCUMENT = {"losses": [1.5, 1.0], "epoch_seconds": [2.0, 1.0], "retries": 3}


def training(code: str) -> Training:
    return Training([sys.executable, "-c", code], os.environ)


def test_it_is_waited_for_in_its_middle_and_at_its_end() -> None:
    told = [json.dumps(line) for line in ({"samples": 8}, {"samples": 16}, DOCUMENT)]
    with training(f"for line in {told!r}: print(line)") as running:
        ended = running.end(60)
    assert (ended.status, ended.seconds, ended.losses, ended.words) == (0, 3.0, [1.5, 1.0], "")
    waits = "import time; print('{\"samples\": 16}', flush=True); time.sleep(600)"
    with training(waits) as running:
        running.until(16, 32, 60)
        running.kill()
        ended = running.end(60)
    assert (ended.status, ended.seconds) == (-signal.SIGKILL, None)
    assert ended.words == "(no words)"


def test_one_that_ends_too_early_or_never_is_told() -> None:
    said = 'print(\'{"error": {"kind": "unreachable", "message": "nobody answers"}}\'); raise SystemExit(1)'
    with training(said) as running, pytest.raises(ProgramFailedError, match=r"ended before .* unreachable: nobody"):
        running.until(16, 32, 60)
    with training(said) as running:
        ended = running.end(60)
    assert (ended.status, ended.words) == (1, "unreachable: nobody answers")
    with training("raise ValueError('no such object')") as running:
        assert running.end(60).words == "ValueError: no such object"
    with training("import time; time.sleep(600)") as running:
        with pytest.raises(ProgramFailedError, match="not half done"):
            running.until(16, 32, 0.05)
        with pytest.raises(ProgramFailedError, match="hung"):
            running.end(0.05)


def test_a_server_that_ended_by_itself_is_started_for_the_next_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def local_server(root: str, **how: Any) -> Iterator[LocalServer]:
        with subprocess.Popen(["sleep", "600"]) as process:
            started.append(process)
            try:
                yield LocalServer("http://s:1", process.pid, {"port": 1})
            finally:
                process.kill()

    monkeypatch.setattr(faults_server, "local_server", local_server)
    link = SimpleNamespace(reach=lambda url: url)
    bed: Any = SimpleNamespace(folder=tmp_path, storage=Host("storage", "127.0.0.1"), link=link)
    with KillableServer(bed, Store("s3://p", 8, 800), ["first"]) as server:
        server.start()
        assert len(started) == 1
        started[0].kill()
        while is_alive(started[0].pid):
            pass
        server.start()
        assert [is_alive(process.pid) for process in started] == [False, True]


def test_progress_may_come_from_elsewhere() -> None:
    parts = iter([0.1, 0.3, 0.6])
    with Training([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, lambda: next(parts)) as running:
        running.until(50, 100, 60)
    assert next(parts, None) is None


def test_the_trainer_tells_its_samples(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "sweep")
    with photographs(None, 10) as folder:
        document = train(str(folder), "sweep_network:model", 2, weights="DEFAULT", batch_size=4, server=None, seed=0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["samples"] for line in lines] == [4, 8, 10, 14, 18, 20]
    assert len(document["losses"]) == 2
