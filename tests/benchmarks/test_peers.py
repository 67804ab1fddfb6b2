"""Peers train as plain does, from a real S3 server; those that are not installed are skipped."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines import precompute, shards
from benchmarks.baselines.connector import ConnectorSource
from benchmarks.baselines.objects import make_client
from benchmarks.baselines.plain import PlainSource
from benchmarks.baselines.precompute import PrecomputeSource
from benchmarks.baselines.tarred import TarredSource
from benchmarks.baselines.training import Task, fit
from benchmarks.e2e.cluster import first_node, ray_cluster, ray_node
from benchmarks.objectstore import Endpoint
from benchmarks.testbed.host import Host
from benchmarks.testbed.processes import ProgramFailedError, run_program
from benchmarks.testbed.testbed import open_testbed
from hapi.errors import InputError

BUCKET, SHARDS = "peers", "s3://peers-shards/train"
PICTURES = 14


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test where a peer is not installed."""
    reason = f"{package} is not installed: uv pip install 'hapi-split[peers]'"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


@pytest.fixture(scope="module")
def bucket(s3_store: Endpoint, pictures: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_store.environment().items():
            patch.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # the connector's program sets them
            patch.setenv(name, "to be replaced")
        client = make_client()
        client.create_bucket(Bucket=BUCKET)
        for path in pictures.rglob("*.*"):
            key = path.relative_to(pictures).as_posix()
            client.put_object(Bucket=BUCKET, Key=f"train/{key}", Body=path.read_bytes())
        yield f"s3://{BUCKET}/train"


def task(bucket: str, small_vit: str, **options: Any) -> Task:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "seed": 3, "val_split": 0.0, "num_workers": 0}
    return Task(bucket, small_vit, "none", **{**settings, **options})


@pytest.fixture(scope="module")
def plain(bucket: str, small_vit: str) -> dict[str, Any]:
    return fit("plain", task(bucket, small_vit), PlainSource)


def test_features_that_were_computed_once_train_as_plain_does(
    bucket: str, small_vit: str, plain: dict[str, Any]
) -> None:
    once = fit("precompute", task(bucket, small_vit), PrecomputeSource)
    assert once["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert once["bytes_received"] == plain["bytes_received"] / 2
    assert once["requests"] == PICTURES


def test_features_that_were_computed_once_are_validated_as_plain_does(pictures: Path, small_vit: str) -> None:
    there = task(str(pictures), small_vit, val_split=0.3, epochs=3, num_workers=1)
    once, plain = fit("precompute", there, PrecomputeSource), fit("plain", there, PlainSource)
    assert once["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert once["accuracies"] == plain["accuracies"]


def test_images_in_the_other_layout_train_as_plain_does(bucket: str, small_vit: str, plain: dict[str, Any]) -> None:
    other = fit("plain", task(bucket, small_vit, channels_last=True), PlainSource)
    assert other["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_a_program_prints_one_document(pictures: Path, small_vit: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--data {pictures} --model {small_vit} --weights none --epochs 1 --val-split 0 --num-workers 0"
    precompute.main([*words.split(), "--device", "cpu"])
    document = json.loads(capsys.readouterr().out)
    assert (document["system"], document["samples"]) == ("precompute", PICTURES)


@needs("s3torchconnector")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_connector_trains_as_plain_does(bucket: str, small_vit: str, plain: dict[str, Any], workers: int) -> None:
    found = fit("s3torchconnector", task(bucket, small_vit, num_workers=workers), ConnectorSource)
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert (found["bytes_received"], found["requests"]) == (plain["bytes_received"], plain["requests"])


@needs("webdataset")
def test_shards_hold_every_photograph_as_it_is_and_train_in_their_own_order(
    bucket: str, small_vit: str, plain: dict[str, Any]
) -> None:
    index = shards.write(bucket, SHARDS)
    assert shards.write(bucket, SHARDS) == index, "writing again is the same again"
    assert (index["samples"], len(index["shards"]), index["classes"]) == (PICTURES, 8, ["crane", "heron"])
    assert index["bytes"] > plain["bytes_received"] / 2
    settings = task(bucket, small_vit, num_workers=2, epochs=3)
    found = fit("webdataset", settings, lambda task: TarredSource(task, shards=SHARDS))
    assert (found["samples"], found["bytes_received"], found["requests"]) == (PICTURES, index["bytes"], 8)
    assert found["losses"][0] == pytest.approx(plain["losses"][0], rel=0.2)
    assert found["losses"][2] < found["losses"][0]
    whole = fit("webdataset", task(bucket, small_vit, batch_size=PICTURES, epochs=1),
                lambda task: TarredSource(task, shards=SHARDS))  # fmt: skip
    same = fit("plain", task(bucket, small_vit, batch_size=PICTURES, epochs=1), PlainSource)
    assert whole["losses"] == pytest.approx(same["losses"], rel=1e-5), "in one batch the order does not matter"


def test_ray_needs_hosts_whose_network_can_be_shaped() -> None:
    with open_testbed("relay") as bed, pytest.raises(InputError, match="--testbed namespaces"), ray_cluster(bed, {}):
        pass


@needs("ray")
def test_ray_trains_as_plain_does_in_the_first_epoch(
    bucket: str, small_vit: str, plain: dict[str, Any], s3_store: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.getbasetemp() / "r"  # short: the paths of its sockets must be
    host = Host("storage", "127.0.0.1")
    words = f"--data {bucket} --model {small_vit} --weights none --epochs 2 --batch-size 4 --seed 3 --val-split 0"
    words += f" --device cpu --cluster 127.0.0.1:{port} --node-address 127.0.0.1"
    with ray_node(host, [*first_node(port, folder), "--num-cpus", "1"], s3_store.environment()):
        program = host.command(sys.executable, "-m", "benchmarks.baselines.raydata", *words.split())
        found = run_program(program, host.environment(s3_store.environment()), timeout_seconds=200).document
    assert found["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-6)
    assert found["losses"][1] < found["losses"][0]
    assert found["requests"] == 8, "batches of features, of two epochs"


@needs("ray")
def test_a_node_that_does_not_start_says_why() -> None:
    node = ray_node(Host("storage", "127.0.0.1"), ["--no-such-option"], {})
    with pytest.raises(ProgramFailedError, match=r"storage host did not start: [\s\S]*no-such-option"), node:
        pass
