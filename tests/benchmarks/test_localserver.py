"""A server as its users start it, and what is said when it does not start."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.localserver import ServerDidNotStartError, is_alive, local_server


def test_it_serves_and_is_gone_afterwards(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.announced["roots"] == [tmp_path.as_uri()]
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_what_a_killed_server_began_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import json, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(json.dumps({'url': 'http://s:1', 'child': child.pid}), flush=True)\n"
        "child.wait()"
    )
    with local_server(tmp_path, program=[sys.executable, "-c", code]) as server:
        child = server.announced["child"]
        assert is_alive(child)
        os.kill(server.pid, signal.SIGKILL)
    for _ in range(500):
        if not is_alive(child):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it went on")


def test_the_reason_is_told_when_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStartError, match="absent"), local_server(tmp_path / "absent"):
        pass
