"""`hapi bench device`, on the CPU."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hapi.cli import build_app

MODEL = "mobilenet_v3_small"


def test_the_server_and_its_prefix_give_the_networks_features() -> None:
    options = ["--device", "cpu", "--precision", "float32", "--engine", "eager", "--samples", "12", "--batch-size", "4"]
    systems = ["--system", "prefix", "--system", "server"]
    found = CliRunner().invoke(
        build_app(), ["bench", "device", "--model", MODEL, *options, *systems, "--repeats", "1", "--json"]
    )
    assert found.exit_code == 0, found.output
    rows = {row["system"]: row for row in json.loads(found.stdout)["rows"]}
    assert set(rows) == {"prefix", "server"}
    assert all(row["largest_error"] < 1e-5 and row["images_per_s"] > 0 for row in rows.values())
    assert rows["server"]["samples"] == 12
    assert rows["server"]["device_images_per_s"] > 0


def test_rates_are_told_as_parts_of_the_loops() -> None:
    from benchmarks.bench.rows import Row
    from benchmarks.scenarios.device import with_ratios

    rates = {"loop": 100.0, "prefix": 90.0, "loop, decoding": 20.0, "server": 30.0}
    rows = [Row(scenario="device", system=name).filled(model="m", images_per_s=rate) for name, rate in rates.items()]
    found = {row.system: row for row in with_ratios(rows)}
    assert found["loop"].get("ratio_to_loop") is None
    assert found["prefix"].get("ratio_to_loop") == pytest.approx(0.9)
    assert found["server"].get("ratio_to_loop_decoding") == pytest.approx(1.5)
