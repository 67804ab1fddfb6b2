"""Going on from the rows of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.sweep.earlier import Earlier
from benchmarks.sweep.judgement import EVERY
from hapi.errors import InputError
from hapi.machine import cpu_name


def kept(folder: Path, rows: list[Row], **values: Any) -> Path:
    of = {"cpu": cpu_name(), "started": "2026-01-01T00:00:00+00:00", "command": "hapi bench sweep"}
    document = {"scenario": "sweep", "machine": of, "remarks": [], "rows": [row.to_json() for row in rows], **values}
    (folder / "rows.json").write_text(json.dumps(document))
    return folder


def case(model: str, system: str, rate: float, **values: Any) -> Row:
    return Row("sweep", system, model=model, bandwidth_bits_per_s=rate, seconds=0.01).filled(**values)


def test_networks_that_are_complete_are_kept(tmp_path: Path) -> None:
    rows = [case(model, "mix", rate) for model in ("a", "b") for rate in (1e8, 1e9)]
    rows += [case("c", "mix", 1e8), case("c", "mix", 1e9, failed=True), case(EVERY, "mix", 1e9)]
    earlier = Earlier.read(kept(tmp_path, rows))
    assert {row.model for row in earlier.rows} == {"a", "b"}
    assert earlier.has("a", [1e8, 1e9], ["mix"])
    assert not earlier.has("a", [1e7, 1e9], ["mix"])
    assert not earlier.has("a", [1e8], ["mix", "single"])
    assert not earlier.has("c", [1e8], ["mix"])


def test_rows_say_when_they_were_measured(tmp_path: Path) -> None:
    rows = [case("a", "mix", 1e9, started="2025-12-31T00:00:00+00:00"), case("b", "mix", 1e9)]
    bench = Bench("sweep")
    Earlier.read(kept(tmp_path, rows)).give(bench)
    assert [row.get("started") for row in bench.rows] == ["2025-12-31T00:00:00+00:00", "2026-01-01T00:00:00+00:00"]
    assert bench.remarks == [
        "measured by an earlier run, which began at 2025-12-31T00:00:00+00:00: a",
        "measured by an earlier run, which began at 2026-01-01T00:00:00+00:00: b (hapi bench sweep)",
    ]


def test_what_cannot_be_gone_on_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--report DIR"):
        Earlier.read(None)
    assert Earlier.read(tmp_path) == Earlier()
    with pytest.raises(InputError, match="those of 'wire'"):
        Earlier.read(kept(tmp_path, [], scenario="wire"))
    with pytest.raises(InputError, match="an abacus"):
        Earlier.read(kept(tmp_path, [], machine={"cpu": "an abacus"}))
