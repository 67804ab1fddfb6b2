"""The plain baseline: the same losses as our trainer, from a folder and from a bucket."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder

import hapi
from benchmarks.baselines import networks, objects, plain
from benchmarks.baselines.training import Task
from compute_client.train import HeadTrainer


class FolderClient:
    """A boto3 client of one bucket, in a folder; two keys to a page."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reads = 0

    def get_paginator(self, operation: str) -> Any:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        assert Bucket == "photos"
        keys = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        found = [{"Key": f"train/{key}"} for key in keys if f"train/{key}".startswith(Prefix)]
        yield from ({"Contents": found[start : start + 2]} for start in range(0, len(found), 2))
        yield {}

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        self.reads += 1
        return {"Body": io.BytesIO((self.root / Key.removeprefix("train/")).read_bytes())}


@pytest.mark.parametrize(("optimizer", "epochs"), [("sgd", 3), ("adam", 2)])
def test_losses_and_accuracy_are_those_of_our_trainer(
    pictures: Path, small_vit: str, optimizer: str, epochs: int
) -> None:
    options: dict[str, Any] = {"epochs": epochs, "optimizer": optimizer, "val_split": 0.3}
    mine = plain.train_plain(str(pictures), small_vit, weights="none", batch_size=4, seed=3, num_workers=0, **options)
    with hapi.DataLoader(str(pictures), backbone=small_vit, weights="none", batch_size=4, seed=3) as loader:
        result = HeadTrainer(loader, **options).fit().to_json()
    assert mine["losses"] == pytest.approx(result["losses"], abs=1e-4)
    assert mine["losses"][0] != pytest.approx(mine["losses"][-1], abs=1e-3), "it trains"
    assert mine["accuracies"] == result["accuracies"]
    for key in ("samples", "train_samples", "val_samples", "epochs", "classes"):
        assert mine[key] == result[key]
    ours = {"setup_seconds", "retries", "failed_samples", "cached_samples", "plan", "first_plan", "stages"}
    assert result.keys() - mine.keys() == ours


def test_a_torchvision_network_loses_its_last_linear_layer() -> None:
    network, transform = networks.load_network("torchvision:mobilenet_v2", "none")
    ours = hapi.model.load_model("torchvision:mobilenet_v2", "none")
    assert repr(transform) == repr(ours.transform)
    with torch.no_grad():
        torch.testing.assert_close(network(ours.example), ours.backbone(ours.example), rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not end with a Linear layer"):
        networks.load_network("torchvision:squeezenet1_1", "none")


def test_a_bucket_gives_what_the_folder_gives(pictures: Path, small_vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FolderClient(pictures)
    monkeypatch.setattr(objects, "make_client", lambda: client)
    options: dict[str, Any] = {"weights": "none", "epochs": 2, "batch_size": 4, "num_workers": 0}
    remote = plain.train_plain("s3://photos/train", small_vit, **options)
    local = plain.train_plain(pictures.as_uri(), small_vit, **options)
    assert remote["losses"] == local["losses"]
    assert remote["classes"] == local["classes"]
    assert local["bytes_received"] == 0, "a folder of this machine crosses no network"
    sizes = [Path(path).stat().st_size for path, _ in ImageFolder(str(pictures)).samples]
    assert remote["bytes_received"] == 2 * sum(sizes)
    assert remote["requests"] == client.reads == 2 * len(sizes)


def test_workers_do_not_change_the_result(pictures: Path, small_vit: str) -> None:
    options: dict[str, Any] = {"weights": "none", "epochs": 3, "batch_size": 4}
    alone = plain.train_plain(str(pictures), small_vit, num_workers=0, **options)
    helped = plain.train_plain(str(pictures), small_vit, num_workers=2, **options)
    assert alone["losses"] == helped["losses"]


@pytest.mark.parametrize("workers", [0, 1])
def test_starting_workers_is_start_up_as_a_warm_up_of_ours_is(pictures: Path, small_vit: str, workers: int) -> None:
    sources: list[plain.PlainSource] = []

    def opened(task: Task) -> plain.PlainSource:
        sources.append(plain.PlainSource(task))
        return sources[0]

    task = Task(str(pictures), small_vit, "none", epochs=1, batch_size=4, val_split=0.0, num_workers=workers)
    told = plain.fit("plain", task, opened)
    assert (sources[0].starting_seconds > 0) == bool(workers)
    assert told["epoch_seconds"][0] + sources[0].starting_seconds < told["seconds"]


def test_a_client_is_made_before_the_first_photograph_and_crosses_to_no_other_process(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FolderClient] = []

    def make_client() -> FolderClient:
        made.append(FolderClient(pictures))
        return made[-1]

    monkeypatch.setattr(objects, "make_client", make_client)
    copy = pickle.loads(pickle.dumps(objects.S3ImageFolder("s3://photos/train", str)))  # noqa: S301  # our own
    copy.open()
    assert (len(made), made[1].reads) == (2, 0)
    assert copy.samples


def test_the_script_prints_one_json_document(pictures: Path, small_vit: str, capsys: Any) -> None:
    arguments = f"--data {pictures} --model {small_vit} --weights none --epochs 1 --num-workers 0 --device cpu"
    plain.main([*arguments.split(), "--val-split", "0"])
    document = json.loads(capsys.readouterr().out)
    assert document["system"] == "plain"
    assert document["samples"] == document["train_samples"] == 14
    assert document["accuracy"] is None
