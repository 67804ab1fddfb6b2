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

import psutil

MARK = "HAPI_TESTBED"
GRACE_SECONDS = 5.0


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of a testbed, except this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


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
