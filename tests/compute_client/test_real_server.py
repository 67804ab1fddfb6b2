"""The loader and `hapi serve`, each in its own process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from compute_client import DataLoader, HeadTrainer
from compute_client.parquet import write_features
from hapi.data import build_manifest
from hapi.data.trimming import is_available
from hapi.errors import DigestMismatchError, ForbiddenError, SampleError, UnauthorizedError
from hapi.model import Graph
from hapi.plan import Plan, Share
from profiler.remote import ServerClient, Timeouts
from tests.compute_client.conftest import SAMPLES, Small
from tests.compute_client.server_process import ServerProcess
from tests.compute_client.test_loader_local import assert_no_threads, assert_same, broken_copy

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def broken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken_copy(pictures, tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def server(pictures: Path, broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves the parent of both datasets, to those who know the token."""
    folder = tmp_path_factory.mktemp("server")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[tenants.tests]\ntoken = "{TOKEN}"\n')
    assert pictures.parent == broken.parent
    with ServerProcess(pictures.parent, folder / "cache", tokens=tokens) as process:
        yield process.url


def test_every_pushdown_gives_what_this_process_computes(
    server: str, pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    def batches(**arguments: object) -> list:
        loader = DataLoader(
            pictures, backbone=backbone, transform=transform, batch_size=4, shuffle=True, seed=1, **arguments
        )
        return [batch for _ in range(2) for batch in loader]

    expected = batches()
    for pushdown in ("none", "stem", "body", "all", "auto"):
        assert_same(batches(server=server, token=TOKEN, pushdown=pushdown), expected)
    assert_no_threads()


def test_random_transforms_are_the_same_on_the_server(server: str, pictures: Path, backbone: nn.Module) -> None:
    random = v2.Compose(
        [
            v2.RandomResizedCrop(16),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def batches(**arguments: object) -> list:
        loader = DataLoader(pictures, backbone=backbone, transform=random, batch_size=8, seed=5, **arguments)
        return [batch for _ in range(2) for batch in loader]

    assert_same(batches(server=server, token=TOKEN, pushdown="all"), batches())


@pytest.mark.skipif(not is_available(), reason="no libturbojpeg on this machine (Debian: libturbojpeg0)")
def test_trimmed_pictures_give_the_same_for_fewer_bytes(
    server: str, pictures: Path, backbone: nn.Module, tmp_path: Path
) -> None:
    large = pictures.parent / "large"
    (large / "a").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(12):
        pixels = noise.integers(0, 256, (150, 220, 3), np.uint8)
        Image.fromarray(pixels).save(large / "a" / f"{number:02d}.jpg", quality=80)
    augmented = v2.Compose([v2.RandomResizedCrop(16, scale=(0.1, 0.4)), v2.ToImage(), v2.ToDtype(torch.float32, True)])

    def run(**arguments: object) -> tuple[list, int]:
        loader = DataLoader(large, backbone=backbone, transform=augmented, batch_size=5, seed=5, **arguments)
        return [batch for _ in range(2) for batch in loader], loader.stats.bytes_received

    def part(*shares: Share) -> dict:
        return {"server": server, "token": TOKEN, "pushdown": Plan("by hand", shares, None, None)}

    expected, _ = run()
    whole, stored_bytes = run(**part(Share("input", 1.0)))
    trimmed, trimmed_bytes = run(**part(Share("input", 1.0, "float32", "trimmed")))
    mixed, _ = run(**part(Share("input", 0.5, "float32", "trimmed"), Share("body", 0.5)))
    for found in (whole, trimmed, mixed):
        assert_same(found, expected)
    assert trimmed_bytes < 0.7 * stored_bytes


def write_in_place(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)


def load_anew(network: nn.Module) -> None:
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()}, assign=True)


def see_a_batch(network: nn.Module) -> None:
    network.train()(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 5)


@pytest.mark.parametrize("change", [write_in_place, load_anew, see_a_batch])
@pytest.mark.parametrize("pushdown", ["none", "stem", "all"])
def test_weights_that_change_after_a_loader_was_made_are_those_of_both_tiers(
    server: str, pictures: Path, transform: v2.Compose, pushdown: str, change: Callable[[nn.Module], None]
) -> None:
    network = Small()
    arguments: dict = {"backbone": network, "transform": transform, "batch_size": 16}
    loader = DataLoader(pictures, server=server, token=TOKEN, pushdown=pushdown, **arguments)
    for _ in range(2):  # before the first epoch, and between two
        change(network)
        assert_same(list(loader), list(DataLoader(pictures, **arguments)))


def test_a_new_loader_sees_what_was_added_and_an_old_one_goes_on(
    server: str, pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    growing = pictures.parent / "growing"
    shutil.copytree(pictures, growing)
    arguments = {"backbone": backbone, "transform": transform, "server": server, "token": TOKEN, "pushdown": "all"}
    old = DataLoader(growing, **arguments)
    picture = next(growing.rglob("*.jpg"))
    shutil.copy(picture, picture.with_name("zz.jpg"))
    new = DataLoader(growing, **arguments)
    assert (old.samples, new.samples) == (SAMPLES, SAMPLES + 1)
    assert len(list(new)) == SAMPLES + 1
    assert len(list(old)) == SAMPLES


def test_extracted_features_have_their_keys_wherever_they_were_made(
    server: str, pictures: Path, backbone: nn.Module, transform: v2.Compose, tmp_path: Path
) -> None:
    arguments = {"backbone": backbone, "transform": transform, "batch_size": 8}
    write_features(DataLoader(pictures, **arguments), tmp_path / "here.parquet")
    far = DataLoader(pictures, server=server, token=TOKEN, pushdown="all", **arguments)
    write_features(far, tmp_path / "there.parquet")
    here, there = pq.read_table(tmp_path / "here.parquet"), pq.read_table(tmp_path / "there.parquet")
    names = ["index", "key", "label", "class"]
    assert there.select(names).equals(here.select(names))
    assert len(set(there["key"].to_pylist())) == SAMPLES


def test_training_is_the_same_wherever_features_are_made(
    server: str, pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    def train(**arguments: object) -> tuple:
        loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=8, seed=2, **arguments)
        result = HeadTrainer(loader, epochs=2, optimizer="adam").fit()
        return result.losses, result.accuracies

    losses, accuracies = train()
    for pushdown in ("all", "stem"):
        found, found_accuracies = train(server=server, token=TOKEN, pushdown=pushdown)
        assert found == pytest.approx(losses, abs=1e-4)
        assert found_accuracies == accuracies


def test_tokens_and_roots_are_respected(
    server: str, pictures: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    with pytest.raises(UnauthorizedError, match=server):
        DataLoader(pictures, backbone=backbone, transform=transform, server=server, token="not-the-right-one")
    outside = pictures.parent.parent
    with pytest.raises(ForbiddenError):
        DataLoader(outside, backbone=backbone, transform=transform, server=server, token=TOKEN)


def test_an_archive_that_is_not_what_it_is_called_is_refused(server: str, graph: Graph) -> None:
    from hapi.model import archive_bytes, archive_chunks

    client = ServerClient(server, TOKEN)
    with pytest.raises(DigestMismatchError):
        client.upload_model("0" * 64, lambda: archive_chunks(graph), archive_bytes(graph))
    assert not client.has_model("0" * 64)
    client.close()


def test_a_broken_picture_is_named_with_its_key(
    server: str, broken: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    def loader(**arguments: object) -> DataLoader:
        return DataLoader(
            broken, backbone=backbone, transform=transform, server=server, token=TOKEN, batch_size=4, **arguments
        )

    for pushdown in ("all", "none"):
        with pytest.raises(SampleError) as caught:
            list(loader(pushdown=pushdown))
        assert caught.value.index == 14
        key = build_manifest(broken).sample(14).key
        assert str(caught.value).startswith(f"sample 14 ({key}) of {broken.as_uri()}: damaged image")
        assert "--skip-errors" in str(caught.value)
        skipping = loader(pushdown=pushdown, on_error="skip")
        assert sum(len(labels) for _, labels in skipping) == SAMPLES - 1
        assert skipping.stats.failed_samples == 1


def test_a_server_that_is_killed_and_started_again_costs_no_sample(
    pictures: Path, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    expected = DataLoader(pictures, backbone=graph, transform=transform, batch_size=2, shuffle=True, seed=9)
    with ServerProcess(pictures, tmp_path / "first") as first:
        loader = DataLoader(
            pictures,
            backbone=graph,
            transform=transform,
            server=first.url,
            pushdown="body",
            batch_size=2,
            shuffle=True,
            seed=9,
            buffer_bytes=1,  # spans of one sample, hardly anything read ahead
            retry_seconds=100,
        )
        iterator = loader.indexed()
        batches = [next(iterator) for _ in range(3)]
        first.kill()
        # it knows neither the model nor the dataset, and takes seconds to be there
        with ServerProcess(pictures, tmp_path / "second", port=first.ready["port"]):
            batches += iterator
    indices = [index for numbers, _, _ in batches for index in numbers]
    assert sorted(indices) == list(range(SAMPLES))
    assert_same([(features, labels) for _, features, labels in batches], list(expected))
    assert loader.stats.retries > 0
    loader.close()
    assert_no_threads()


def test_a_server_that_is_killed_for_good_is_done_without(
    pictures: Path, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    expected = DataLoader(pictures, backbone=graph, transform=transform, batch_size=2, shuffle=True, seed=9)
    with ServerProcess(pictures, tmp_path / "kept") as server:
        loader = DataLoader(
            pictures,
            backbone=graph,
            transform=transform,
            server=server.url,
            pushdown="body",
            batch_size=2,
            shuffle=True,
            seed=9,
            buffer_bytes=1,
            retry_seconds=0.5,
            fallback=True,
        )
        iterator = loader.indexed()
        batches = [next(iterator) for _ in range(3)]
        server.kill()
        batches += iterator
    indices = [index for numbers, _, _ in batches for index in numbers]
    assert sorted(indices) == list(range(SAMPLES))
    assert_same([(features, labels) for _, features, labels in batches], list(expected))
    assert 0 < loader.stats.fallback_samples < SAMPLES
    assert loader.plan.history
    loader.close()
    assert_no_threads()


def test_leaving_while_the_server_is_silent_does_not_wait_for_it() -> None:
    """A listening socket that never answers: closing wakes the reader instead of waiting for its timeout."""
    import socket

    from hapi.cancel import Cancel
    from hapi.wire.protocol import ExtractRequest

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ServerClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeouts=Timeouts(read=60))
        request = ExtractRequest(dataset="0" * 64, indices=[0], cut="input")
        cancel = Cancel()
        ended = threading.Event()

        def ask() -> None:
            with pytest.raises(Exception, match=r"no storage server answers|broke off"):
                list(client.extract(request, cancel=cancel))
            ended.set()

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        connection, _ = silent.accept()
        assert connection.recv(10)  # the request is under way
        cancel.set()
        assert ended.wait(20)
        thread.join(20)
        connection.close()
