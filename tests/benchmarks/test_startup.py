"""The start of a job, phase by phase, against a real server."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench.photographs import photographs
from benchmarks.localserver import local_server
from benchmarks.scenarios.startup import PHASES, _start


def test_a_job_that_comes_again_uploads_nothing_and_has_the_same_phases(tmp_path: Path) -> None:
    with photographs(None, 12) as folder, local_server(folder) as server:
        cold, warm = (_start(server.url, folder, "mobilenet_v3_small", str(tmp_path)) for _ in range(2))
    for found in (cold, warm):
        phases = [found[f"{phase}_seconds"] for phase in PHASES]
        assert all(seconds >= 0 for seconds in phases)
        assert abs(sum(phases) - found["seconds"]) < 1e-6
        assert found["note"]
    assert list((tmp_path / "hapi" / "measurements").glob("*.json"))
