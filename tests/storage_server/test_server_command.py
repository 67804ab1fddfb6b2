"""`hapi serve` as a user runs it."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from hapi.errors import HapiError
from storage_server.commands import register
from storage_server.http.server import allow_files
from storage_server.settings import ServerSettings

SERVE = [sys.executable, "-m", "hapi.cli", "serve"]


@pytest.fixture
def options(photos: Path, tmp_path: Path) -> list[str]:
    return ["--root", str(photos), "--port", "0", "--cache-dir", str(tmp_path / "cache")]


def test_it_says_when_it_listens_serves_and_ends_well(options: list[str], photos: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "models" / "0123.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of a server that crashed")
    command = [*SERVE, *options, "--json", "--memory-budget", "1GB", "--threads", "1", "--max-batch", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["port"] > 0
        assert ready["roots"] == [photos.as_uri()]
        assert ready["budget_bytes"] == 10**9
        assert ready["device"] == "cpu"
        body: dict[str, Any] = {"uri": str(photos)}
        digest = httpx.post(f"{ready['url']}/v1/datasets", json=body, timeout=60).json()["digest"]
        body = {"dataset": digest, "indices": [0], "cut": "input"}
        assert httpx.post(f"{ready['url']}/v1/extract", json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "", "one JSON line and nothing else on standard output"
    assert ready["url"] in err
    assert "HAPI storage server" in err
    assert "leaked" not in err, "libraries find nothing that was not freed"
    assert not leftover.exists()
    assert not list((tmp_path / "cache").rglob("*.part"))


def refused(*arguments: str) -> str:
    """What `hapi serve` says when it does not start; the command line makes one sentence and exit code 2 of it."""
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, HapiError), result.output
    assert result.exception.exit_code == 2
    return str(result.exception)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--host", "0.0.0.0"], "no tokens are set"),
        (["--root", "/does/not/exist"], "does not exist"),
        (["--root", "http://example.org/photos"], "not an address of a dataset"),
        (["--memory-budget", "much"], "memory_budget"),
        (["--device", "tpu"], "device"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--tokens", "/does/not/exist.toml"], "tokens file"),
        (["--max-batch", "0"], "max_batch"),
        (["--log-level", "loud"], "log_level"),
        (["--cache-dir", "/dev/null/cache"], "cache directory"),
    ],
)
def test_what_cannot_work_is_said_before_it_listens(options: list[str], extra: list[str], said: str) -> None:
    assert said in refused(*options, *extra)


def test_without_a_root_it_says_how_to_give_one() -> None:
    assert "--root" in refused("--port", "0")


def test_a_gpu_without_a_number_is_the_first(tmp_path: Path) -> None:
    assert ServerSettings.load(roots=(str(tmp_path),), device="cuda").device == "cuda:0"
    assert ServerSettings.load(roots=(str(tmp_path),), device="cuda:2").device == "cuda:2"


def test_settings_come_from_the_environment_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROOTS": str(photos), "HOST": "0.0.0.0", "CACHE_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"HAPI_SERVER_{name}", value)
    assert "no tokens are set" in refused()


def test_a_port_that_is_taken_is_named(options: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*SERVE, *options, "--port", str(port), "--json"], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2, done.stderr
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "bad-input"


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few, most = 300, 300 if before[1] == 300 else 301
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
