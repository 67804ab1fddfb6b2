"""Receiving features to measure the wire: every sample counts once per pass, from a real server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.localserver import local_server
from benchmarks.wire import experiment
from benchmarks.wire.experiment import OBJECTS, WAYS, parse_way
from benchmarks.wire.receiver import receive
from hapi.data import open_store
from hapi.data.transfer import put_pictures
from hapi.errors import InputError

SAMPLES = 10


def test_ways() -> None:
    assert parse_way("int8+zstd") == ("int8", "zstd")
    assert parse_way("float32") == ("float32", "none")
    assert all(parse_way(way) for way in WAYS if way != OBJECTS)
    for text in ("int3", "int8+gzip", "+zstd", ""):
        with pytest.raises(InputError, match="--way"):
            parse_way(text)


def test_features_and_objects_are_received_and_counted(tmp_path: Path) -> None:
    put_pictures(open_store(tmp_path), SAMPLES, classes=2, seed=0, workers=2)
    uri, model = tmp_path.as_uri(), "torchvision:squeezenet1_1"
    with local_server(tmp_path) as server:

        def told(cut: str, codec: str, compression: str) -> dict[str, int]:
            return receive(server.url, uri, model, "none", cut, codec, compression, 2, 0.0)

        exact = told("features.10", "float32", "none")
        narrow = told("features.10", "int8", "zstd")
        objects = told("input", "float32", "none")
    assert exact["samples"] == narrow["samples"] == objects["samples"] == SAMPLES
    assert exact["feature_bytes"] == narrow["feature_bytes"]
    assert exact["feature_bytes"] < exact["bytes"] < 1.01 * exact["feature_bytes"]
    assert narrow["bytes"] < exact["bytes"] / 4
    assert exact["first_pass_feature_bytes"] == exact["feature_bytes"]
    assert exact["first_pass_bytes"] == pytest.approx(exact["bytes"], rel=0.01)
    assert objects["bytes"] >= sum(path.stat().st_size for path in tmp_path.glob("*/*"))


def test_what_the_server_did_in_the_first_pass_is_held_against_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"seconds": 2.0, "cpu_seconds": 1.0, "samples": 40, "peak_rss_bytes": 1, "feature_bytes": 4e9, "bytes": 2e9}
    told |= {"first_pass_feature_bytes": 1e9, "first_pass_bytes": 5e8}
    monkeypatch.setattr(experiment, "_receive", lambda *asked: told)
    worked = iter((10.0, 20.0))
    bed: Any = SimpleNamespace(storage=None, cpu_seconds=lambda host: next(worked))
    settings: Any = SimpleNamespace(cut="features.6", seconds=2.0)
    nothing: Any = None
    found = experiment.measure(bed, nothing, nothing, settings, "float32", 1e10)
    assert found["server_cpu_seconds_per_gb"] == 2.0
    assert found["server_cpu_seconds_per_wire_gb"] == 4.0
    assert found["client_cpu_seconds_per_gb"] == 0.25
