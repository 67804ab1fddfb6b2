"""`hapi bench decode` with several workers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from typer.testing import CliRunner

from hapi.cli import build_app


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_and_threads_make_what_torchvision_makes() -> None:
    options = ["--workers", "2", "--samples", "12", "--repeats", "1", "--json"]
    found = CliRunner().invoke(build_app(), ["bench", "decode", *options])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)["rows"]
    assert [row["system"] for row in rows] == ["pillow", "hapi", "processes", "fetched"]
    assert all(row["largest_difference"] == 0 and row["samples"] == 12 for row in rows)
    assert all(row["operations_ratio"] > 0 for row in rows)
