"""Whoever ends a benchmark, and however often: what it started is taken down."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from benchmarks.bench.ending import SIGNALS, as_by_ctrl_c
from benchmarks.bench.run import Bench
from benchmarks.demo import story
from hapi import cli


def end(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
    signal.pause()


@pytest.mark.parametrize("number", SIGNALS)
def test_being_asked_again_cuts_nothing_short(number: signal.Signals) -> None:
    before, taken_down = [signal.getsignal(one) for one in SIGNALS], []

    def run() -> None:
        with Bench("wire"):
            try:
                end(number)
            finally:
                for again in SIGNALS:
                    os.kill(os.getpid(), again)
                taken_down.append(True)

    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == cli.INTERRUPTED
    assert taken_down == [True]
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_terminal_that_closes_does_not_end_what_ignores_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), as_by_ctrl_c():
            end(signal.SIGHUP, signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_demo_takes_down_its_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    taken_down = []

    def tell(*arguments: Any) -> None:
        try:
            end(signal.SIGTERM)
        finally:
            taken_down.append(True)

    monkeypatch.setattr(story, "tell", tell)
    monkeypatch.setattr("sys.argv", ["hapi", "demo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, taken_down) == (cli.INTERRUPTED, [True])
