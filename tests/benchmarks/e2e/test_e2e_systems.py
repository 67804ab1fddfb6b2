"""How each system is run, and what is refused before anything starts."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision import models

import hapi
from benchmarks.baselines import peers
from benchmarks.baselines.networks import load_network
from benchmarks.baselines.peers import PeerMissingError
from benchmarks.baselines.published import FREEZE_CUTS, freeze_cut
from benchmarks.baselines.systems import CLIENTS, PACKAGES, PEERS, SYSTEMS, Job, check_peer, command_of, needs_server
from benchmarks.e2e.experiment import RHOS, Settings, hosts
from hapi.errors import InputError

JOB = Job("s3://b", "torchvision:resnet18", "none", 2, 16, seed=3, server="http://s:1", options=("--codec", "float16"))

PUBLISHED_BYTES = {
    "alexnet": 16 * 1024,
    "resnet18": 98 * 1024,
    "vgg11": 16 * 1024,
    "vgg19": 392 * 1024,
    "densenet121": 196 * 1024,
    "vit_b_16": 197 * 768 * 4,
}
"""Per image at the freeze layer, by its logs (383 MB for 2,000 images of densenet121); for ViT all its tokens."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_the_same_job(system: str) -> None:
    command = " ".join(command_of(system, JOB))
    assert "--data s3://b --model torchvision:resnet18 --weights none --epochs 2 --batch-size 16 --seed 3" in command
    assert "--val-split 0" in command
    assert ("--server http://s:1" in command) == needs_server(system)
    assert ("--codec float16" in command) == needs_server(system)


@pytest.mark.parametrize(("processors", "workers"), [(1, 2), (2, 2), (4, 4), (64, 8)])
@pytest.mark.parametrize("system", CLIENTS)
def test_baselines_have_a_worker_per_processor_as_ours_has_threads(system: str, processors: int, workers: int) -> None:
    command = command_of(system, replace(JOB, processors=processors))
    assert command[command.index("--num-workers") + 1] == str(workers)


def test_what_is_pushed_down() -> None:
    ours = [system for system in SYSTEMS if needs_server(system)]
    pushed = {system: command_of(system, JOB)[command_of(system, JOB).index("--pushdown") + 1] for system in ours}
    assert pushed == {"none": "none", "all": "all", "static": "layer4.0", "paper": "paper", "paper-v1": "paper-v1",
                      "single": "single", "mix": "auto"}  # fmt: skip


@pytest.mark.parametrize(("model", "cut"), FREEZE_CUTS.items())
def test_the_published_freeze_layers_give_the_published_bytes(model: str, cut: str) -> None:
    with torch.device("meta"):
        network, image = models.get_model(model.removeprefix("torchvision:")), torch.empty(1, 3, 224, 224)
    sizes: list[int] = []
    network.get_submodule(cut).register_forward_hook(lambda module, given, output: sizes.append(4 * output.numel()))
    network.eval()(image)
    assert sizes == [PUBLISHED_BYTES[model.removeprefix("torchvision:")]]


@pytest.mark.parametrize("model", ["torchvision:alexnet", "torchvision:resnet18", "torchvision:vgg11"])
def test_the_published_freeze_layers_are_cuts(model: str) -> None:
    with torch.device("meta"):
        (network, _), example = load_network(model, "none"), torch.empty(2, 3, 224, 224)
    graph = hapi.capture(network, example)
    (found,) = (place for place in graph.cuts if place.name == freeze_cut(model))
    assert found.bytes_per_sample == PUBLISHED_BYTES[model.removeprefix("torchvision:")]


def test_plain_is_first_and_always_there() -> None:
    assert Settings(systems=("mix", "none")).chosen_systems() == ("plain", "mix", "none")
    with pytest.raises(InputError, match="system 'fast'"):
        Settings(systems=("fast",)).chosen_systems()


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> Any:
        return None if name in PACKAGES.values() else importlib.util.find_spec(name)

    monkeypatch.setattr(peers, "find_spec", found)


@pytest.mark.usefixtures("nothing_installed")
def test_a_peer_that_is_not_installed_runs_only_where_it_is_asked_for() -> None:
    assert Settings(systems=("ray",)).chosen_systems() == ("plain", "ray")
    assert set(PEERS) & set(Settings().chosen_systems()) == {"precompute"}
    assert set(Settings().left_out()) == set(PACKAGES)
    assert Settings(systems=("ray",)).left_out() == ()
    check_peer("precompute")
    with pytest.raises(PeerMissingError, match=r"webdataset is not installed.*uv pip install 'hapi-split\[peers\]'"):
        check_peer("webdataset")


def test_links_follow_from_rho_and_from_bandwidths() -> None:
    assert Settings(bandwidths=("20mbit",), rhos=(2.0,)).links() == [(2.0, None), (None, 2e7)]
    assert Settings(bandwidths=("20mbit",)).links() == [(None, 2e7)]
    assert [rho for rho, _ in Settings().links()] == list(RHOS)
    assert Settings(quick=True, rhos=(2.0,)).links() == [(2.0, None)]
    assert Settings(quick=True).links() == [(None, 1.5e7)]  # nothing that scatters decides it


def test_servers_elsewhere_need_their_address_and_data() -> None:
    with pytest.raises(InputError, match="--server URL and --data"), hosts(Settings(s3_endpoint="http://s3"), print):
        pass
