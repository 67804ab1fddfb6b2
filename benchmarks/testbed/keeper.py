"""Ends what a testbed started, also when the testbed itself was killed: it waits for its standard input to end.

    python -m benchmarks.testbed.keeper MARK FOLDER

Every process of a testbed carries HAPI_TESTBED=MARK in its environment, and so do those that it begins. When the pipe
to the testbed is closed, by its end or by its death, they are terminated, then killed, and FOLDER is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable

import psutil

MARK = "HAPI_TESTBED"
GRACE_SECONDS = 5.0
BECOMING_SECONDS = 0.01
"""Much longer than the kernel takes to give a process its new program's environment."""


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of a testbed, except this one."""
    found, unclear = _of(mark, psutil.process_iter())
    if unclear:  # a process that is becoming another program shows no environment for a moment
        time.sleep(BECOMING_SECONDS)
        found += _of(mark, unclear)[0]
    return found


def _of(mark: str, processes: Iterable[psutil.Process]) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Which of the processes carry the mark, and which show no environment at all."""
    found, unclear = [], []
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid():
                continue
            environment = process.environ()
            if environment.get(MARK) == mark:
                found.append(process)
            elif not environment:
                unclear.append(process)
    return found, unclear


def end(mark: str) -> int:
    """Ends the processes of a testbed, politely first; answers how many there were."""
    ended = 0
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        processes = marked(mark)
        ended = ended or len(processes)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                ask(process)
        deadline = time.monotonic() + GRACE_SECONDS
        while marked(mark) and time.monotonic() < deadline:  # those that nobody waited for carry no mark any more
            time.sleep(0.02)
    return ended


def main(mark: str, folder: str) -> None:
    """Waits until nobody holds the other end of standard input, then cleans up."""
    while sys.stdin.buffer.read(4096):
        pass
    end(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
