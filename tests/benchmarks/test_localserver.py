"""A server as its users start it, and what is said when it does not start."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from benchmarks.localserver import ServerDidNotStartError, local_server


def test_it_serves_and_is_gone_afterwards(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.announced["roots"] == [tmp_path.as_uri()]
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_the_reason_is_told_when_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStartError, match="absent"), local_server(tmp_path / "absent"):
        pass
