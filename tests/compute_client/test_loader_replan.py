"""A loader whose plan changes in mid-epoch: the same batches in the same order, and a history that says why."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torchvision.transforms import v2

from compute_client import DataLoader, HeadTrainer
from compute_client.replanning import observer, pace, replanner
from compute_client.replanning.dealing import Dealing
from hapi.model import Graph
from hapi.plan import Plan, Profile, Share
from hapi.wire.work import Work
from tests.compute_client.fake_server import FakeServer, profile_of_graph
from tests.compute_client.test_loader_local import assert_no_threads, assert_same

EPOCHS = 4
WHOLE = Plan("mix", (Share("output", 1.0),), 1.0, 1.0)


@pytest.fixture
def server(pictures: Path, graph: Graph) -> FakeServer:
    return FakeServer(pictures, graph)


@pytest.fixture
def expected(pictures: Path, graph: Graph, transform: v2.Compose) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = DataLoader(pictures, backbone=graph, transform=transform, batch_size=4, shuffle=True, seed=1)
    return [batch for _ in range(EPOCHS) for batch in loader]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believes little at once: a test has few samples."""
    monkeypatch.setattr(observer, "SERVER_SAMPLES", 1)
    monkeypatch.setattr(pace, "LEAST_COUNT", 1)
    monkeypatch.setattr(replanner, "LEAST_SECONDS", 0.0)


def slow_work(samples: int) -> Work:
    """Of a server that takes forever for whatever it is asked."""
    return Work(samples, 10.0 * samples, 10.0 * samples)


def open_loader(
    server: FakeServer, graph: Graph, transform: object, profile: Profile, **arguments: object
) -> DataLoader:
    values = {"pushdown": "auto", "batch_size": 4, "shuffle": True, "seed": 1, "cache_bytes": 0} | arguments
    with patch("compute_client.execution.measured_plan", return_value=(WHOLE, profile)):
        loader = DataLoader(server.manifest.uri, backbone=graph, transform=transform, server=server.client(), **values)
        loader.warm_up()
    return loader


@pytest.mark.parametrize("elapsed", [0.0, 100.0])
def test_what_a_server_does_not_account_for_was_the_way(
    server: FakeServer, graph: Graph, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch, elapsed: float
) -> None:
    ways = list[float]()
    arrived = Dealing.arrived
    monkeypatch.setattr(Dealing, "arrived", lambda self, span, way: (ways.append(way), arrived(self, span, way))[1])

    def delayed(number: int) -> None:
        time.sleep(0.02)

    server.trouble = delayed
    server.work = lambda samples: Work(samples, 0.001, elapsed)
    assert list(open_loader(server, graph, transform, profile_of_graph(graph)))
    assert ways
    assert all(way == 0.0 for way in ways) if elapsed else all(way >= 0.02 for way in ways)


@pytest.mark.usefixtures("eager")
def test_a_slow_server_gets_less_and_the_batches_are_the_same(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    server.work = slow_work
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    assert not loader.plan.history
    assert_same([batch for _ in range(EPOCHS) for batch in loader], expected)
    (change, *_) = loader.plan.history
    assert change.before == WHOLE.cuts
    assert change.after[0].name == "input"
    assert "the server takes" in change.reason
    assert loader.stats.samples_by_cut["input"] > loader.stats.samples_by_cut["output"]
    assert "history" in loader.plan.to_json()
    assert_no_threads()


@pytest.mark.usefixtures("eager")
def test_a_plan_that_changes_does_not_disturb_resuming(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    server.work = slow_work
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    batches = iter(loader)
    first = [next(batches) for _ in range(4)]
    state = loader.state_dict()
    batches.close()
    again = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    again.load_state_dict(state)
    assert_same(first + list(again), expected[: len(again)])


@pytest.mark.usefixtures("eager")
def test_a_training_tells_the_first_plan_and_the_last(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    server.work = slow_work
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    result = HeadTrainer(loader, epochs=EPOCHS).fit().to_json()
    assert result["first_plan"] == WHOLE.to_json()
    assert result["plan"]["history"]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("how", [{"replan": False}, {"pushdown": "paper"}, {"pushdown": WHOLE}, {"pushdown": "all"}])
def test_other_plans_stay_as_they_are(server: FakeServer, graph: Graph, transform: v2.Compose, how: dict) -> None:
    server.work = slow_work
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9), **how)
    for _ in range(2):
        list(loader)
    assert not loader.plan.history
    assert set(loader.stats.samples_by_cut) == {"output"}


@pytest.mark.usefixtures("eager")
def test_a_server_that_says_nothing_is_followed_by_nobody(
    server: FakeServer, graph: Graph, transform: v2.Compose
) -> None:
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    list(loader)
    assert not loader.plan.history


@pytest.mark.usefixtures("eager")
def test_changing_that_fails_leaves_the_plan_and_says_so(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, caplog: pytest.LogCaptureFixture
) -> None:
    server.work = slow_work
    loader = open_loader(server, graph, transform, profile_of_graph(graph, 1e9))
    with (
        caplog.at_level(logging.ERROR),
        patch.object(loader._execution._decision, "_prepare", side_effect=RuntimeError("no room")),
    ):
        assert_same([batch for _ in range(EPOCHS) for batch in loader], expected)
    assert "stays as it is" in caplog.text
    assert loader.plan == WHOLE


def test_the_way_features_travel_is_the_plans(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    lossy = replace(WHOLE, cuts=(Share("output", 1.0, "float16", "lz4"),))
    with patch("compute_client.execution.measured_plan", return_value=(lossy, profile_of_graph(graph))):
        loader = DataLoader(
            server.manifest.uri, backbone=graph, transform=transform, server=server.client(), batch_size=4,
            codecs=("float32", "float16"),
        )  # fmt: skip
        list(loader)
    assert {(request.codec, request.compression) for request in server.requests} == {("float16", "lz4")}
