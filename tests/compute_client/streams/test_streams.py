"""Streams between a server and this process, and the profile that `hapi profile --streams` makes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchvision.transforms import v2

import hapi
from compute_client.streams import Streams, contending
from compute_client.streams.endless import ENDLESS, Endless
from hapi import cli
from hapi.data import describe_transform
from hapi.errors import InputError
from hapi.model import Graph
from hapi.plan import Plan, Share
from profiler.remote import ServerClient
from tests.compute_client.server_process import ServerProcess
from tests.compute_client.test_loader_local import assert_no_threads

HALVES = Plan("given", (Share("stem", 0.5), Share("output", 0.5)), None, None)


@pytest.fixture(scope="module")
def server(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ["--feature-cache-bytes", "0"]
    with ServerProcess(pictures.parent, tmp_path_factory.mktemp("server"), options=options) as process:
        yield process.url


def test_the_samples_come_again_and_again() -> None:
    numbers = iter(Endless(3))
    assert [next(numbers) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert len(Endless(3)) == ENDLESS


def test_a_stream_is_left_when_its_pace_is_known(
    server: str, pictures: Path, graph: Graph, transform: v2.Compose
) -> None:
    with ServerClient(server) as client:
        dataset = client.register(str(pictures))
        client.ensure_model(graph)
        with Streams(client, str(pictures), graph, describe_transform(transform), dataset, engine="eager") as streams:
            first, again = (streams.watch(HALVES, 0.1, 60.0) for _ in range(2))
            assert not first.is_bound
            assert min(first.samples, again.samples) >= streams.fill_samples(HALVES)  # nothing was kept of the first
            assert streams.pace(HALVES) is not None
            assert streams.watch(HALVES, 0.1, 1e-3, give_up=1e-9).is_bound
            assert streams.until_idle().requests_active == 0
    assert_no_threads()


def test_a_profile_knows_what_streams_take(server: str, pictures: Path, transform: v2.Compose, graph: Graph) -> None:
    found = hapi.profile(graph, pictures, transform=transform, server=server, bandwidth=1e6, streams=contending)
    paces = found.details["stream_seconds"]
    assert {"input", "output"} <= set(paces)
    for name, seconds in paces.items():
        assert max(found.cut(name).server_seconds, found.cut(name).client_seconds) == pytest.approx(seconds)
    assert found.link is not None
    assert found.link.bandwidth_bits_per_s == 1e6  # that of the job, not of the streams


def test_a_server_that_keeps_features_cannot_be_measured(
    pictures: Path, transform: v2.Compose, graph: Graph, tmp_path: Path
) -> None:
    with (
        ServerProcess(pictures.parent, tmp_path) as server,
        pytest.raises(InputError, match="--feature-cache-bytes 0"),
    ):
        hapi.profile(graph, pictures, transform=transform, server=server.url, streams=contending)


def test_streams_need_two_tiers(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["torchvision:alexnet", "--weights", "none", "--data", str(pictures), "--streams"]
    monkeypatch.setattr(sys, "argv", ["hapi", "profile", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "give server=" in " ".join(capsys.readouterr().err.split())
