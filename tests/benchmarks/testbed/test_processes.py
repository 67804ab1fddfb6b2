"""Programs under measurement: their document, their errors, and that they are ended."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.testbed.host import Host, divide_processors
from benchmarks.testbed.processes import ProgramFailedError, run_program
from hapi.machine import processors


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_document_and_what_it_took() -> None:
    outcome = run_program(python("print('noise'); print('{\"losses\": [1]}'); sum(range(3_000_000))"), os.environ)
    assert outcome.document == {"losses": [1]}
    assert outcome.cpu_seconds > 0
    assert outcome.seconds > 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('import sys; print(\'{"error": {"message": "no such cut"}}\'); sys.exit(2)', "ended with 2: no such cut"),
        ("import sys; print('broken', file=sys.stderr); sys.exit(1)", "ended with 1: broken"),
        ("print('[1]')", r"ended with 0: \(no words\)"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
def test_other_ends_are_told(code: str, said: str) -> None:
    with pytest.raises(ProgramFailedError, match=said):
        run_program(python(code), os.environ)


def test_one_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ProgramFailedError, match="took longer than 0 s"):
        run_program(["sleep", "600"], os.environ, timeout_seconds=0.1)


def test_a_host_pins_and_enters() -> None:
    host = Host("storage", "10.77.0.1", ("nsenter", "-t", "7", "-n"), (0, 2), {"MARK": "m"})
    assert host.command("ls", "-l") == ["nsenter", "-t", "7", "-n", "taskset", "-c", "0,2", "ls", "-l"]
    assert host.processors == 2
    assert Host("any", "127.0.0.1").processors == processors()
    environment = host.environment({"MORE": "1"})
    assert environment["OMP_NUM_THREADS"] == "2"
    assert (environment["MARK"], environment["MORE"]) == ("m", "1")
    assert "OMP_NUM_THREADS" not in Host("any", "127.0.0.1").environment() or "OMP_NUM_THREADS" in os.environ


def test_no_proxy_stands_between_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://elsewhere")
    assert "HTTP_PROXY" not in Host("any", "127.0.0.1").environment()


def test_processors_are_divided_without_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.testbed.host.shutil.which", lambda tool: tool)
    assert divide_processors([5, 3, 4, 2], 1, 2) == ((2,), (3, 4))
    assert divide_processors([0], 1, 1) == ((), ())
