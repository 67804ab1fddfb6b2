"""A network that cannot be had, or one way of several that breaks, costs its own rows and the status, no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scenarios import decode, engine
from hapi import cli

SCENARIOS = {
    "cache": ("--quick", "--copies", "1"),
    "codecs": ("--quick",),
    "decode": ("--quick",),
    "device": ("--quick", "--device", "cpu"),
    "engine": ("--quick",),
    "memory-model": ("--quick",),
    "published": ("--results", "{folder}"),
    "simulate": ("--quick",),
    "tenants": ("--quick",),
}
WITHOUT_DATA = ("engine", "memory-model")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Any]]:
    """The rows of a run that ended with 1."""
    monkeypatch.setattr("sys.argv", ["hapi", "bench", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_network_that_there_is_not_leaves_the_others(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "peak", lambda precision: 1.0)
    data = () if name in WITHOUT_DATA else ("--data", str(pictures))
    networks = ("--model", "torchvision:nothing", "--model", "torchvision:never")
    more = (word.format(folder=tmp_path) for word in SCENARIOS[name])
    rows = bench(capsys, monkeypatch, name, *networks, *data, *more)
    assert [(row["model"], row["failed"]) for row in rows] == [("nothing", True), ("never", True)]
    assert all(row["model"] in row["note"] for row in rows)


def test_where_pillow_breaks_nothing_is_told_of_differences_to_it(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[torch.Tensor]:
        raise ValueError("no decoder")

    ways = {"pillow": broken, "hapi": lambda: [torch.zeros(1)]}
    monkeypatch.setattr(decode, "systems", lambda *_: ways)
    rows = bench(capsys, monkeypatch, "decode", "--quick", "--data", str(pictures))
    assert [(row["system"], row["failed"]) for row in rows] == [("pillow", True), ("hapi", False)]
    assert rows[1]["largest_difference"] is None
