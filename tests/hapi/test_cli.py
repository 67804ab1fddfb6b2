"""The command line's contract: errors are sentences, exit codes tell who is at fault, `--json` is one document."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from hapi import cli
from hapi.errors import InputError, ServerUnreachableError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hapi.cli", *arguments], capture_output=True, text=True)


def test_version_and_help() -> None:
    assert run("--version").stdout.strip()
    listing = run("--help").stdout
    for command in ("demo", "serve", "profile", "plan", "train", "extract", "doctor", "data", "models"):
        assert command in listing


def test_bad_usage_exits_with_2() -> None:
    assert run("train", "--no-such-option").returncode == 2


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    app = typer.Typer()

    @app.command()
    def fail(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    monkeypatch.setattr(cli, "build_app", lambda: app)
    monkeypatch.setattr(sys, "argv", ["hapi", *flags])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_bad_input_is_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(InputError("cut 'layer9': unknown. Use one of [layer1]."), monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: cut 'layer9': unknown. Use one of [layer1].\n"
    assert captured.out == ""


def test_failure_with_json_is_a_document_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(ServerUnreachableError("http://x:1: no answer"), monkeypatch, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document == {"error": {"kind": "unreachable", "message": "http://x:1: no answer"}}


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch) == cli.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
