"""What is told beside a measurement does not fail it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks.testbed import testbed
from benchmarks.testbed.host import Host
from benchmarks.testbed.links import RelayLink


def test_a_server_that_does_not_answer_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(testbed, "FETCH_SECONDS", 0.2)
    host = Host("storage", "127.0.0.1")
    bed = testbed.Testbed("relay", host, host, RelayLink(), tmp_path, "mark")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert bed.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/metrics") == ""
