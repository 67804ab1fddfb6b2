"""A loader that keeps features yields what one without a cache yields, and asks nobody for what it has."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from compute_client import DataLoader, HeadTrainer
from compute_client.cache import CacheOptions, LoaderCache
from compute_client.stats import LoaderStats
from hapi.errors import InputError, SampleError
from hapi.model import Graph
from tests.compute_client.conftest import SAMPLES, Small
from tests.compute_client.fake_server import FakeServer, problem
from tests.compute_client.test_loader_local import assert_no_threads, broken_copy

ROW_BYTES = 8 * 4
HALF = 8 * SAMPLES + ROW_BYTES * SAMPLES // 2
"""Memory for half of the samples; a slot number per sample counts too."""
RANDOM = v2.Compose([v2.RandomResizedCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

Indexed = list[tuple[list[int], torch.Tensor, torch.Tensor]]


@pytest.fixture
def server(pictures: Path, graph: Graph) -> FakeServer:
    return FakeServer(pictures, graph)


def remote(server: FakeServer, graph: Graph, transform: Any, **arguments: Any) -> DataLoader:
    values = {"pushdown": "body", "batch_size": 4, "shuffle": True, "seed": 1, "retry_seconds": 1} | arguments
    return DataLoader(server.manifest.uri, backbone=graph, transform=transform, server=server.client(), **values)


def epochs(loader: DataLoader, count: int = 3) -> list[Indexed]:
    return [list(loader.indexed()) for _ in range(count)]


def assert_equal(found: list[Indexed], expected: list[Indexed]) -> None:
    for epoch, wanted in zip(found, expected, strict=True):
        assert [indices for indices, _, _ in epoch] == [indices for indices, _, _ in wanted]
        for (_, features, labels), (_, wanted_features, wanted_labels) in zip(epoch, wanted, strict=True):
            torch.testing.assert_close(features, wanted_features, rtol=1e-5, atol=1e-6)
            assert torch.equal(labels, wanted_labels)


arguments = st.fixed_dictionaries(
    {"batch_size": st.sampled_from([1, 4, 7, 50]), "drop_last": st.booleans(), "on_error": st.just("skip")},
    optional={
        "indices": st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=20),
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
        "rank": st.just(1),
    },
)


@pytest.fixture(scope="module")
def damaged(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, of which one is none."""
    root = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(pictures, root)
    (root / "heron" / "04.jpg").write_bytes(b"no picture")
    return root


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arguments, st.sampled_from([None, 0, HALF, 8 * SAMPLES + 3 * ROW_BYTES]), st.booleans(), st.booleans())
def test_batches_are_those_of_a_loader_without_a_cache(
    damaged: Path,
    graph: Graph,
    transform: v2.Compose,
    tmp_path_factory: pytest.TempPathFactory,
    given_arguments: dict[str, Any],
    cache_bytes: int | None,
    on_disk: bool,
    is_random: bool,
) -> None:
    values = dict(given_arguments)
    if "rank" in values:
        values["world_size"] = 2
    if is_random:
        transform = RANDOM
    common = {"backbone": graph, "transform": transform, "num_workers": 1, **values}
    expected = epochs(DataLoader(damaged, cache_bytes=0, **common))
    folder = tmp_path_factory.mktemp("cache") if on_disk else None
    cached = DataLoader(damaged, cache_bytes=cache_bytes, cache_dir=folder, **common)
    assert_equal(epochs(cached), expected)
    again = DataLoader(damaged, cache_bytes=cache_bytes, cache_dir=folder, **common)
    assert_equal(epochs(again), expected)
    if on_disk and not is_random:
        assert sum(again.stats.samples_by_cut.values()) == 0  # only the damaged picture was tried again


def test_samplers_may_repeat_samples(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    common = {"backbone": graph, "transform": transform, "batch_sampler": [[3, 3, 1], [1, 5, 3, 3], [7], [7, 2]]}
    expected = epochs(DataLoader(pictures, cache_bytes=0, **common), 2)
    assert_equal(epochs(DataLoader(pictures, **common), 2), expected)


def test_later_epochs_need_no_server(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    expected = epochs(remote(server, graph, transform, cache_bytes=0))
    server.requests.clear()
    loader = remote(server, graph, transform)
    first = list(loader.indexed())
    asked, received = len(server.requests), loader.stats.bytes_received
    server.trouble = lambda number: problem(500, "failed", "the server is gone")
    server.handle = lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused"))  # type: ignore[method-assign]
    assert_equal([first, *epochs(loader, 2)], expected)
    assert (len(server.requests), loader.stats.bytes_received) == (asked, received)
    assert loader.stats.cached_samples == 2 * SAMPLES
    assert loader.stats.samples == 3 * SAMPLES
    assert_no_threads()


def test_half_a_cache_asks_for_the_other_half(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    loader = remote(server, graph, transform, cache_bytes=HALF)
    epochs(loader, 3)
    assert sum(server.sent.values()) == SAMPLES + 2 * (SAMPLES - SAMPLES // 2)
    assert loader.stats.cached_samples == 2 * (SAMPLES // 2)
    assert max(server.sent.values()) == 3


def test_another_job_finds_the_features_on_disk(
    server: FakeServer, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    expected = epochs(remote(server, graph, transform, cache_bytes=0))
    for cut in ("body", "stem", "none", "all"):  # wherever they were computed
        server.requests.clear()
        server.models.clear()
        loader = remote(server, graph, transform, cache_dir=tmp_path, pushdown=cut)
        assert_equal(epochs(loader), expected)
        if cut != "body":
            assert not server.requests
            assert not server.models  # not even the network was uploaded
            assert loader.stats.disk_samples == SAMPLES
            loader.warm_up()
            assert loader.plan.cuts == ()
    server.requests.clear()
    epochs(remote(server, graph, transform, cache_dir=tmp_path, codec="float16"), 1)
    assert server.requests  # other numbers


def test_a_loader_over_a_full_folder_needs_no_server_once_it_is_made(
    server: FakeServer, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    expected = epochs(remote(server, graph, transform, cache_dir=tmp_path))
    loader = remote(server, graph, transform, cache_dir=tmp_path, pushdown="auto")
    server.handle = lambda request: (_ for _ in ()).throw(httpx.ConnectError("refused"))  # type: ignore[method-assign]
    assert_equal(epochs(loader), expected)


def test_without_memory_the_disk_serves(
    server: FakeServer, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    expected = epochs(remote(server, graph, transform, cache_bytes=0))
    server.sent.clear()
    loader = remote(server, graph, transform, cache_bytes=0, cache_dir=tmp_path)
    assert_equal(epochs(loader), expected)
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))
    assert loader.stats.disk_samples >= 2 * SAMPLES


def test_what_is_lost_on_disk_is_computed_again(
    server: FakeServer, graph: Graph, transform: v2.Compose, tmp_path: Path
) -> None:
    """Also when it is lost after the batch was planned."""
    expected = epochs(remote(server, graph, transform, cache_bytes=0), 2)
    server.sent.clear()
    loader = remote(server, graph, transform, cache_bytes=8 * SAMPLES + 3 * ROW_BYTES, cache_dir=tmp_path)
    first = list(loader.indexed())
    later = loader.indexed()
    second = [next(later)]
    data = next(tmp_path.glob("*.data"))
    data.write_bytes(bytes(data.stat().st_size))
    assert_equal([first, [*second, *later]], expected)
    assert sum(server.sent.values()) > SAMPLES


def test_views_come_round(server: FakeServer, graph: Graph) -> None:
    plain = epochs(remote(server, graph, RANDOM), 3)
    server.requests.clear()
    loader = remote(server, graph, RANDOM, augment_views=2, shuffle=False)
    first, second, third, fourth = epochs(loader, 4)
    assert {request.epoch for request in server.requests} == {0, 1}
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 3 + 2))
    assert_equal([third, fourth], [first, second])
    assert not torch.allclose(first[0][1], second[0][1])
    by_sample = {index: row for indices, rows, _ in plain[1] for index, row in zip(indices, rows, strict=True)}
    torch.testing.assert_close(second[0][1], torch.stack([by_sample[index] for index in second[0][0]]))
    with pytest.raises(InputError, match="augment_views 0"):
        remote(server, graph, RANDOM, augment_views=0)
    with pytest.raises(InputError, match="augment_views needs"):
        DataLoader(server.manifest.uri, backbone=graph, transform=lambda image: None, augment_views=2)


def test_what_cannot_be_known_to_be_equal_is_not_kept(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    loader = remote(server, graph, RANDOM)
    epochs(loader, 2)
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 2))
    opaque = DataLoader(server.manifest.uri, backbone=graph, transform=lambda image: transform(image), batch_size=8)
    epochs(opaque, 2)
    assert (loader.stats.cached_samples, opaque.stats.cached_samples) == (0, 0)


def test_batches_are_the_users_to_write_to(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=graph, transform=transform, batch_size=5)
    expected = [features.clone() for features, _ in loader]
    for _ in range(3):
        for (features, labels), wanted in zip(loader, expected, strict=True):
            assert torch.equal(features, wanted)
            features.zero_()
            labels.zero_()
    assert {int(label) for _, labels in loader for label in labels} == {0, 1, 2}


def test_a_cached_epoch_is_resumed_where_it_was(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    def loader(**values: Any) -> DataLoader:
        return DataLoader(pictures, backbone=graph, transform=transform, batch_size=4, shuffle=True, seed=3, **values)

    expected = epochs(loader(cache_bytes=0), 3)
    whole = loader()
    list(whole)
    later = whole.indexed()
    assert_equal([[next(later) for _ in range(3)]], [expected[1][:3]])
    state = json.loads(json.dumps(whole.state_dict()))
    assert (state["epoch"], state["batches"]) == (1, 3)
    whole.load_state_dict(state)
    assert_equal(epochs(whole, 2), [expected[1][3:], expected[2]])


def test_subsets_share_what_is_kept(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    loader = remote(server, graph, transform)
    parts = [loader.subset(range(20), batch_size=3, shuffle=True), loader.subset(range(10, SAMPLES), batch_size=8)]
    for _ in range(2):
        for part in parts:
            list(part)
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))


def test_training_takes_one_pass_over_the_data(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    def train(**values: Any) -> list[float]:
        return HeadTrainer(remote(server, graph, transform, **values), epochs=3, val_split=0.3).fit().losses

    losses = train()
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))
    assert losses == pytest.approx(train(cache_bytes=0))


def test_weights_that_change_are_noticed(pictures: Path, backbone: nn.Module, transform: v2.Compose) -> None:
    loader = DataLoader(pictures, backbone=backbone, transform=transform, batch_size=SAMPLES)
    before = next(iter(loader))[0]
    with torch.no_grad():
        backbone.body[0].bias.add_(1)
    try:
        after = next(iter(loader))[0]
        assert not torch.allclose(before, after)
        assert torch.equal(next(iter(loader))[0], after)
    finally:
        with torch.no_grad():
            backbone.body[0].bias.sub_(1)


def test_weights_that_change_before_the_first_epoch_are_kept_under_their_own_name(
    pictures: Path, tmp_path: Path, transform: v2.Compose, caplog: pytest.LogCaptureFixture
) -> None:
    network = Small()
    values: dict[str, Any] = {"backbone": network, "transform": transform, "batch_size": 8}
    loader = DataLoader(pictures, cache_dir=tmp_path, **values)
    with torch.no_grad():
        network.body[0].bias.add_(1)
    wanted = epochs(DataLoader(pictures, cache_bytes=0, **values), 1)
    assert_equal(epochs(loader, 1), wanted)
    assert "weights changed" not in caplog.text  # nothing was kept that had to be given up
    later = DataLoader(pictures, cache_dir=tmp_path, **values)
    assert later.plan.reasons == ("every feature is in the cache",)  # for that it has looked for their names
    before = network.body[0].bias.detach().clone()
    with torch.no_grad():
        network.body[0].bias.add_(1)
    assert_equal(epochs(later, 1), epochs(DataLoader(pictures, cache_bytes=0, **values), 1))
    with torch.no_grad():
        network.body[0].bias.copy_(before)
    again = DataLoader(pictures, cache_dir=tmp_path, **values)
    assert_equal(epochs(again, 1), wanted)
    assert again.stats.disk_samples == SAMPLES


def test_what_other_weights_give_in_mid_epoch_is_not_kept_under_the_name_of_those_before(
    pictures: Path, tmp_path: Path, backbone: nn.Module, transform: v2.Compose
) -> None:
    values: dict[str, Any] = {"backbone": backbone, "transform": transform, "batch_size": 4}
    wanted = epochs(DataLoader(pictures, cache_bytes=0, **values), 1)
    loader = DataLoader(pictures, cache_dir=tmp_path, requests_in_flight=1, buffer_bytes=1, **values)
    before = backbone.body[0].bias.detach().clone()
    batches = loader.indexed()
    next(batches)
    try:
        with torch.no_grad():
            backbone.body[0].bias.add_(1)
        assert not torch.allclose(list(batches)[-1][1], wanted[0][-1][1])
    finally:
        with torch.no_grad():
            backbone.body[0].bias.copy_(before)
    later = DataLoader(pictures, cache_dir=tmp_path, **values)
    assert_equal(epochs(later, 1), wanted)
    assert 0 < later.stats.disk_samples < SAMPLES


def test_a_damaged_picture_is_an_error_in_every_epoch(
    pictures: Path, tmp_path: Path, graph: Graph, transform: v2.Compose
) -> None:
    root = broken_copy(pictures, tmp_path)
    loader = DataLoader(root, backbone=graph, transform=transform, batch_size=4, cache_dir=tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(SampleError):
            list(loader)


class Pair(nn.Module):
    """Two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x.amax(1).half()


@pytest.mark.parametrize("cache_bytes", [None, 8 * SAMPLES + 5 * 524])
def test_several_outputs_are_kept_together(pictures: Path, transform: v2.Compose, cache_bytes: int | None) -> None:
    common = {"backbone": Pair(), "transform": transform, "batch_size": 4, "shuffle": True}
    plain, kept = DataLoader(pictures, cache_bytes=0, **common), DataLoader(pictures, cache_bytes=cache_bytes, **common)
    for _ in range(3):
        for (features, labels), (wanted, wanted_labels) in zip(kept, plain, strict=True):
            assert all(map(torch.equal, features, wanted))
            assert torch.equal(labels, wanted_labels)
    assert kept.stats.cached_samples == 2 * (SAMPLES if cache_bytes is None else 5)


def test_a_backbone_without_a_name_is_kept_in_memory_only(
    pictures: Path, transform: v2.Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy().mean((2, 3)))  # cannot be captured

    loader = DataLoader(
        pictures, backbone=Strange(), transform=transform, pushdown="none", batch_size=8, cache_dir=tmp_path
    )
    epochs(loader, 2)
    assert loader.stats.cached_samples == SAMPLES
    assert not list(tmp_path.glob("*.data"))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "cannot be captured" in warnings[0]


@pytest.mark.parametrize("values", [{"cache_bytes": -1}, {"disk_cache_bytes": -1}])
def test_impossible_sizes_are_refused(pictures: Path, graph: Graph, transform: v2.Compose, values: Any) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        DataLoader(pictures, backbone=graph, transform=transform, **values)


@pytest.mark.parametrize(("memory", "disk", "share"), [(5000, 5000, 0.5), (5000, 2500, 0.5), (2500, 7500, 0.75)])
def test_room_on_disk_is_for_what_is_in_memory_as_well(tmp_path: Path, memory: int, disk: int, share: float) -> None:
    """Plans took two halves for the whole."""
    dataset: Any = SimpleNamespace(samples=100, listing=None)
    options = CacheOptions(memory_bytes=8 * 100 + memory, folder=tmp_path, disk_bytes=disk)
    cache = LoaderCache(dataset, options, views=1, keys=list, stats=LoaderStats())
    assert cache.share(100) == share
