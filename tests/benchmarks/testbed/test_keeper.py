"""Nothing outlives a testbed, not even one that was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.testbed.keeper import end, marked

BED = """
import subprocess
from benchmarks.testbed.testbed import open_testbed
with open_testbed("relay") as bed:
    words = bed.storage.command("sh", "-c", "sleep 600")
    child = subprocess.Popen(words, env=bed.storage.environment(), start_new_session=True)
    print(bed.mark, bed.folder, flush=True)
    child.wait()
"""


def begin() -> tuple[subprocess.Popen[str], str, Path]:
    process = subprocess.Popen([sys.executable, "-c", BED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    mark, folder = process.stdout.readline().split()
    process.stdout.close()
    return process, mark, Path(folder)


def keepers(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # others end meanwhile
            if mark in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_what_a_killed_testbed_left_is_ended() -> None:
    process, mark, folder = begin()
    (keeper,) = keepers(mark)
    assert marked(mark)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    keeper.wait(60)
    assert not marked(mark)
    assert not folder.exists()


def test_a_process_that_is_becoming_another_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = iter([{}, {"HAPI_TESTBED": "mine"}])
    becoming = SimpleNamespace(pid=os.getpid() + 1, environ=lambda: next(environments))
    monkeypatch.setattr(psutil, "process_iter", lambda: [becoming])
    assert marked("mine") == [becoming]


def test_an_interrupted_testbed_ends_what_it_started() -> None:
    process, mark, folder = begin()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not marked(mark)
    assert not folder.exists()


def test_only_marked_processes_are_ended() -> None:
    ours = subprocess.Popen(["sleep", "600"], env={**os.environ, "HAPI_TESTBED": "one"})
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, "HAPI_TESTBED": "two"})
    try:
        assert end("one") >= 1
        assert ours.wait(30) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(30)
