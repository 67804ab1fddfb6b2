"""How each system is run, and what is refused before anything starts."""

from __future__ import annotations

import pytest

from benchmarks.baselines.published import FREEZE_CUTS
from benchmarks.baselines.systems import SYSTEMS, Job, command_of, needs_server
from benchmarks.e2e.experiment import RHOS, Settings, hosts
from hapi.errors import InputError

JOB = Job("s3://b", "torchvision:resnet18", "none", 2, 16, seed=3, server="http://s:1", options=("--codec", "float16"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_the_same_job(system: str) -> None:
    command = " ".join(command_of(system, JOB))
    assert "--data s3://b --model torchvision:resnet18 --weights none --epochs 2 --batch-size 16 --seed 3" in command
    assert "--val-split 0" in command
    assert ("--server http://s:1" in command) == needs_server(system)
    assert ("--codec float16" in command) == needs_server(system)


def test_what_is_pushed_down() -> None:
    pushed = {
        system: command_of(system, JOB)[command_of(system, JOB).index("--pushdown") + 1] for system in SYSTEMS[1:]
    }
    assert pushed == {"none": "none", "all": "all", "static": "layer4", "paper": "paper", "paper-v1": "paper-v1",
                      "single": "single", "mix": "auto"}  # fmt: skip


@pytest.mark.parametrize(("model", "cut"), FREEZE_CUTS.items())
def test_the_published_freeze_layers_are_cuts(model: str, cut: str) -> None:
    import torch

    import hapi
    from hapi.model.zoo import load_model

    with torch.device("meta"):
        example = torch.empty(2, 3, 224, 224)
    graph = hapi.capture(load_model(model, "none").backbone.to("meta"), example)
    assert cut in [place.name for place in graph.cuts]


def test_plain_is_first_and_always_there() -> None:
    assert Settings(systems=("mix", "none")).chosen_systems() == ("plain", "mix", "none")
    with pytest.raises(InputError, match="system 'fast'"):
        Settings(systems=("fast",)).chosen_systems()


def test_links_follow_from_rho_and_from_bandwidths() -> None:
    assert Settings(bandwidths=("20mbit",), rhos=(2.0,)).links() == [(2.0, None), (None, 2e7)]
    assert Settings(bandwidths=("20mbit",)).links() == [(None, 2e7)]
    assert [rho for rho, _ in Settings().links()] == list(RHOS)


def test_servers_elsewhere_need_their_address_and_data() -> None:
    with pytest.raises(InputError, match="--server URL and --data"), hosts(Settings(s3_endpoint="http://s3")):
        pass
