"""A sweep whose testbed breaks for one network goes on with the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.localserver import ServerDidNotStartError
from benchmarks.scenarios.sweep import sweep
from benchmarks.sweep import experiment
from benchmarks.sweep.cases import MOST_ROUNDS, MOST_SECONDS
from benchmarks.sweep.experiment import Settings, sweep_model
from benchmarks.testbed.services import Server, Store


def test_a_network_whose_server_does_not_start_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def start_server(*asked: object) -> Iterator[Server]:
        raise ServerDidNotStartError("hapi serve did not start: no room")
        yield

    monkeypatch.setattr(experiment, "start_server", start_server)
    bed: Any = SimpleNamespace(link=SimpleNamespace(shape=lambda rate: None))
    bench = Bench("sweep")
    bench.rows = [Row("sweep", "mix", model="alexnet"), Row("sweep", "mix", model="resnet18", seconds=1.0)]
    sweep_model(Settings(), bench, bed, Store("s3://p", 8, 800), "torchvision:resnet18", [1e8], ["mix"])
    assert [(row.model, row.failed, row.note) for row in bench.rows] == [
        ("alexnet", False, ""),
        ("resnet18", True, "hapi serve did not start: no room"),
    ]


def test_the_help_tells_how_long_open_cases_are_read_again() -> None:
    assert f"{MOST_ROUNDS} times and for {MOST_SECONDS:g} s at most" in " ".join(str(sweep.__doc__).split())
