"""`hapi train | extract | models | doctor` as processes see them: JSON, exit codes, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from compute_client import DataLoader
from hapi import cli
from tests.compute_client.conftest import CLASSES, SAMPLES, Small
from tests.compute_client.server_process import ServerProcess
from tests.compute_client.test_loader_local import broken_copy

MODEL = "tests.compute_client.test_client_commands:small_network"


def small_network() -> tuple[nn.Module, object]:
    """A factory as users write one: backbone, classifier, and the transform."""
    from torchvision.transforms import v2

    torch.manual_seed(0)
    steps = [v2.Resize(20), v2.CenterCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return nn.Sequential(Small(), nn.Linear(8, 3)), v2.Compose(steps)


@pytest.fixture
def hapi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hapi", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_train_reports_what_was_agreed(hapi, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    code, output, told = hapi(
        "train", "--data", pictures, "--model", MODEL, "--epochs", 2, "--batch-size", 8, "--out", out, "--json"
    )
    assert code == 0, told
    document = json.loads(output)
    keys = "samples epochs seconds epoch_seconds bytes_received requests final_loss accuracy peak_rss_bytes plan"
    assert set(keys.split()) <= document.keys()
    assert {"policy", "cuts", "predicted_seconds", "limit_seconds"} <= document["plan"].keys()
    assert document["plan"]["cuts"] == [{"name": "input", "share": 1.0}]
    assert (document["samples"], len(document["losses"]), document["classes"]) == (SAMPLES, 2, list(CLASSES))
    assert "epoch 2/2" in told
    assert out.is_file()
    assert json.loads(out.with_suffix(".json").read_text())["classes"] == list(CLASSES)


def test_a_training_that_diverges_is_reported_all_the_same(hapi, pictures: Path) -> None:
    hopeless = ("--epochs", 2, "--batch-size", 8, "--weight-decay", "1e30")
    code, output, told = hapi("train", "--data", pictures, "--model", MODEL, *hopeless, "--json")
    assert code == 0, told
    assert json.loads(output)["final_loss"] is None


def test_train_tells_people_in_a_table(hapi, pictures: Path) -> None:
    code, output, _ = hapi("train", "--data", pictures, "--model", MODEL, "--epochs", 1)
    assert code == 0
    assert "accuracy" in output
    assert "peak memory" in output


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"--model": "torchvision:resnet9000"}, 2, "resnet9000"),
        ({"--data": "s4://bucket"}, 2, "s4://bucket"),
        ({"--server": "nowhere"}, 2, "http://"),
        ({"--server": "http://127.0.0.1:9"}, 1, "hapi serve"),
        ({"--pushdown": "all"}, 2, "storage server"),
        ({"--optimizer": "lbfgs"}, 2, "sgd"),
        ({"--codec": "float8"}, 2, "float8"),
        ({"--buffer": "many"}, 2, "many"),
        ({"--out": "head.pt"}, 2, "safetensors"),
        ({"--val-split": "1.5"}, 2, "val_split"),
    ],
)
def test_train_fails_with_a_sentence(hapi, pictures: Path, changes: dict[str, str], code: int, said: str) -> None:
    arguments = {"--data": str(pictures), "--model": MODEL, "--epochs": "1"} | changes
    found, output, told = hapi("train", "--json", *[part for pair in arguments.items() for part in pair])
    assert found == code
    assert said in json.loads(output)["error"]["message"]
    assert "Traceback" not in told


def test_a_broken_picture_ends_training_unless_it_is_skipped(hapi, pictures: Path, tmp_path: Path) -> None:
    root = broken_copy(pictures, tmp_path)
    command = ("train", "--data", root, "--model", MODEL, "--epochs", 1, "--val-split", 0, "--json")
    code, output, _ = hapi(*command)
    assert code == 2
    assert "heron/03.jpg" in json.loads(output)["error"]["message"]
    code, output, _ = hapi(*command, "--skip-errors")
    assert code == 0
    assert json.loads(output)["failed_samples"] == 1


def test_extract_writes_features_labels_and_keys(hapi, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    code, output, told = hapi("extract", "--data", pictures, "--model", MODEL, "--out", out, "--json")
    assert code == 0, told
    assert json.loads(output)["samples"] == SAMPLES
    table = pq.read_table(out)
    assert table.column("index").to_pylist() == list(range(SAMPLES))
    assert table.column("key").to_pylist()[0] == "crane/00.jpg"
    assert table.column("class").to_pylist() == [name for name in CLASSES for _ in range(11)]
    network, transform = small_network()
    loader = DataLoader(pictures, backbone=network[0], transform=transform, batch_size=SAMPLES)
    features, labels = next(iter(loader))
    assert table.column("label").to_pylist() == labels.tolist()
    found = torch.tensor(table.column("features").to_pylist())
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)


def test_extract_leaves_nothing_half_written(hapi, pictures: Path, tmp_path: Path) -> None:
    root = broken_copy(pictures, tmp_path / "data")
    out = tmp_path / "features.parquet"
    out.write_bytes(b"what was there")
    code, _, told = hapi("extract", "--data", root, "--model", MODEL, "--out", out)
    assert code == 2
    assert "heron/03.jpg" in told.replace("\n", "")
    assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "features.parquet"]
    for name, why in (("no/x.parquet", "folder does not exist"), ("x.csv", "written as Parquet")):
        code, _, told = hapi("extract", "--data", root, "--model", MODEL, "--out", tmp_path / name)
        assert code == 2
        assert why in told.replace("\n", " ")


def test_doctor_says_what_is_well(hapi, pictures: Path) -> None:
    code, output, _ = hapi("doctor", "--data", pictures, "--json")
    document = json.loads(output)
    assert (code, document["ok"]) == (0, True)
    assert {check["name"] for check in document["checks"]} >= {"python", "packages", "devices", "memory"}


def test_doctor_says_what_is_not(hapi, tmp_path: Path) -> None:
    code, output, _ = hapi("doctor", "--data", tmp_path / "absent", "--server", "http://127.0.0.1:9", "--json")
    document = json.loads(output)
    assert (code, document["ok"]) == (1, False)
    failed = {check["name"]: check["said"] for check in document["checks"] if not check["ok"]}
    assert failed.keys() == {"server", "data, from here"}
    assert "127.0.0.1:9" in failed["server"]


def test_models_are_pushed_listed_used_and_removed(hapi, pictures: Path, tmp_path: Path) -> None:
    with ServerProcess(pictures, tmp_path / "cache") as process:
        url = process.url
        pushed = json.loads(hapi("models", "push", MODEL, "--server", url, "--json")[1])
        assert pushed["new"]
        assert not json.loads(hapi("models", "push", MODEL, "--server", url, "--json")[1])["new"]
        listed = json.loads(hapi("models", "list", "--server", url, "--json")[1])["models"]
        assert [model["digest"] for model in listed] == [pushed["digest"]]
        code, output, told = hapi(
            "train", "--data", pictures, "--model", MODEL, "--epochs", 1, "--server", url, "--pushdown", "all", "--json"
        )
        assert code == 0, told
        assert json.loads(output)["requests"] > 0
        code, output, _ = hapi("doctor", "--server", url, "--data", pictures, "--json")
        assert code == 0
        assert {"server", "link", "data, by the server"} <= {check["name"] for check in json.loads(output)["checks"]}
        assert hapi("models", "rm", "zz", "--server", url)[0] == 2
        assert hapi("models", "rm", pushed["digest"][:12], "--server", url)[0] == 0
        assert json.loads(hapi("models", "list", "--server", url, "--json")[1])["models"] == []


def test_models_are_compiled_for_a_server_of_this_machine(
    hapi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(compiler: object, job: dict[str, object]) -> dict[str, object]:
        Path(str(job["target"])).write_bytes(b"library")
        return {"seconds": 1.0, "nodes": 10, "gain": 1.0, "error": 0.0}

    monkeypatch.setattr("hapi.engine.Compiler._run_worker", make)
    monkeypatch.setattr("hapi.engine.compiler.unable", lambda program: None)
    code, output, _ = hapi("models", "compile", MODEL, "--server-cache", tmp_path / "server", "--threads", 1, "--json")
    (row,) = json.loads(output)["cuts"]
    assert (code, row["cut"], row["made"], row["used"]) == (0, "output", True, False)
    assert "no faster" in row["why"]
    assert len(list((tmp_path / "server" / "compiled").glob("*.so"))) == 1
    monkeypatch.setattr("hapi.engine.compiler.unable", lambda program: "no C++ compiler")
    code, output, _ = hapi("models", "compile", MODEL, "--server-cache", tmp_path / "other", "--json")
    assert (code, json.loads(output)["cuts"][0]["why"]) == (1, "no C++ compiler")
    code, _, told = hapi("models", "compile", MODEL, "--cut", "nowhere")
    assert code == 2
    assert "nowhere" in told
    code, _, told = hapi("models", "compile", MODEL, "--device", "cuda:99")
    assert code == 2
    assert "cuda:99" in told
