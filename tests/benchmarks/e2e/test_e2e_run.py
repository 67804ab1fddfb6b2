"""The comparison itself, small: real systems, a real S3 server, no privileges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from benchmarks import rclone
from benchmarks.e2e import experiment
from benchmarks.e2e.companions import Companions
from benchmarks.e2e.experiment import Experiment, Settings, middle, run
from benchmarks.installing import ObjectStoreError
from benchmarks.localserver import ServerDidNotStartError
from benchmarks.testbed.processes import Outcome
from benchmarks.testbed.services import SentModel, Store


@pytest.mark.s3
def test_a_tiny_run_without_namespaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        rclone.install()
    except ObjectStoreError as error:
        pytest.skip(f"no S3 server on this machine: {error}")
    pytest.importorskip("matplotlib")
    settings = Settings(
        models=("torchvision:mobilenet_v3_small",),
        bandwidths=("100mbit",),
        systems=("all", "static"),
        samples=("10",),
        batch_size=32,
        repeats=1,
        testbed="relay",
        serve_options=("--max-batch", "8"),
        train_options=("--retry-seconds", "5"),
    )
    run(settings, report=tmp_path, as_json=True)
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert [row["system"] for row in rows] == ["plain", "plain", "all", "static"]
    assert not any(row["failed"] for row in rows)
    assert all(row["loss_difference"] < 1e-4 for row in rows)
    assert rows[2]["bytes"] < rows[1]["bytes"]
    assert rows[2]["link_bytes_to_compute"] > rows[2]["bytes"]
    assert rows[1]["rho"] == pytest.approx(8 * rows[1]["bytes"] / 1e8 / min(rows[0]["epoch_seconds"]))
    assert rows[2]["server_stages"]["decode"] > 0
    assert rows[2]["client_stages"]["waiting"] > 0
    assert rows[2]["link_bytes_to_storage"] < 1e6  # the network was there already
    assert any("relay" in remark for remark in document["remarks"])
    assert (tmp_path / "index.html").read_text().count("<figure>") == 6


@pytest.mark.s3
def test_a_system_that_breaks_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        rclone.install()
    except ObjectStoreError as error:
        pytest.skip(f"no S3 server on this machine: {error}")
    settings = Settings(
        models=("torchvision:mobilenet_v3_small",),
        bandwidths=("100mbit",),
        systems=("ray", "all"),
        samples=("6",),
        batch_size=32,
        repeats=1,
        testbed="relay",
        serve_options=("--device", "abacus"),
    )
    with pytest.raises(typer.Exit) as ended:
        run(settings, as_json=True)
    assert ended.value.exit_code == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["system"], row["failed"]) for row in rows] == [
        ("plain", False), ("plain", False), ("ray", True), ("all", True),
    ]  # fmt: skip
    assert "uv pip install" in rows[2]["note"] or "--testbed namespaces" in rows[2]["note"]
    assert "device" in rows[3]["note"]


def test_a_network_that_the_server_does_not_get_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def hosts(settings: Settings, say: object) -> Iterator[tuple[Any, dict[str, Store]]]:
        link = SimpleNamespace(shape=lambda rate: None)
        yield SimpleNamespace(link=link, remarks=()), dict.fromkeys(settings.chosen_models(), Store("s3://p", 8, 800))

    def send_model(bed: object, store: object, model: str, weights: str, *, is_compiled: bool) -> SentModel:
        if model.endswith("resnet18"):
            raise ServerDidNotStartError("hapi serve did not start: no room")
        return SentModel(tmp_path, 10)

    def cell(self: Experiment, systems: tuple[str, ...], *situation: float | None) -> None:
        for system in systems:
            with self._bench.trial(system=system, model=self._model) as trial:
                trial.measured(seconds=1.0, losses=[1.0])

    monkeypatch.setattr(experiment, "hosts", hosts)
    monkeypatch.setattr(experiment, "send_model", send_model)
    monkeypatch.setattr(Experiment, "calibrate", lambda self: 1.0)
    monkeypatch.setattr(Experiment, "cell", cell)
    with pytest.raises(typer.Exit) as ended:
        run(Settings(models=("resnet18", "alexnet"), rhos=(1.0,), systems=("mix",)), as_json=True)
    assert ended.value.exit_code == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["system"], row["failed"]) for row in rows] == [("mix", True), ("plain", False), ("mix", False)]
    assert (rows[0]["model"], rows[0]["note"]) == ("resnet18", "hapi serve did not start: no room")


def test_the_middle_of_short_runs_counts() -> None:
    runs = [{"seconds": seconds, "bytes": number} for number, seconds in enumerate((1.6, 1.2, 1.5))]
    assert middle(runs) == {"seconds": 1.5, "bytes": 2, "each_run": [1.6, 1.2, 1.5]}
    assert middle(runs[:1]) == runs[0]


def test_the_start_up_of_the_first_run_counts_which_had_to_measure() -> None:
    runs = [
        {"seconds": seconds, "start_seconds": start, "link_bytes_to_compute": 9, "client_cpu_seconds": start}
        for seconds, start in ((1.6, 16.0), (1.2, 5.0), (1.5, 6.0))
    ]
    assert middle(runs)["start_seconds"] == middle(runs)["client_cpu_seconds"] == 16.0


@pytest.mark.parametrize(("kind", "known"), [("namespaces", 0.0), ("hosts", None)])
def test_what_a_storage_host_elsewhere_worked_is_not_known(tmp_path: Path, kind: str, known: float | None) -> None:
    document = {"train_samples": 8, "epoch_seconds": [1.0], "bytes_received": 5, "peak_rss_bytes": 1, "losses": [1.0]}
    host, store = SimpleNamespace(processors=1), Store("s3://p", 8, 800)
    bed: Any = SimpleNamespace(
        kind=kind, storage=host, compute=host, link=SimpleNamespace(carried=lambda: None),
        cpu_seconds=lambda host: 0.0, run=lambda *words, **more: Outcome(document, 2.0, 1.0),
    )  # fmt: skip
    one = Experiment(Settings(), None, bed, store, Companions(bed, store, print), "torchvision:resnet18")
    assert one._run("plain", None, 1, {}, tmp_path)["storage_cpu_seconds"] == known
