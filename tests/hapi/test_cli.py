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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--no-such-option"], "No such option: --no-such-option"),
        (["train", "--data", "x", "--model", "y", "--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["trian"], "Did you mean 'train'?"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(arguments: list[str], said: str) -> None:
    plain, with_json = run(*arguments), run(*arguments, "--json")
    assert (plain.returncode, with_json.returncode) == (2, 2)
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: ")
    assert said in plain.stderr
    assert plain.stderr.count("\n") == 1
    document = json.loads(with_json.stdout)
    assert document["error"]["kind"] == "bad-usage"
    assert said in document["error"]["message"]


def test_no_command_shows_the_help() -> None:
    result = run()
    assert result.returncode == 2
    assert "Commands" in result.stdout
    assert "error" not in result.stderr


def test_a_command_can_end_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_with(typer.Exit(1), monkeypatch) == 1


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


def test_an_interrupt_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch, "--json") == cli.INTERRUPTED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["kind"] == "interrupted"
    assert captured.err == "error: interrupted\n"
