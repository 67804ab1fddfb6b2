"""Profiles and plans as documents: there and back, and what is wrong is named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from hapi.errors import ProfileError
from hapi.plan import CutCost, Link, Plan, Profile, Share

DOCUMENT: dict[str, Any] = {
    "model": "resnet50",
    "input_bytes": 110000,
    "samples": 50000,
    "batch_size": 256,
    "epochs": 1,
    "link": {"bandwidth_bits_per_s": 1e9, "latency_seconds": 0.0005},
    "cuts": [
        {"name": "input", "out_bytes": 110000, "server_seconds": 0.0001, "client_seconds": 0.004},
        {
            "name": "layer3.5",
            "out_bytes": 401408,
            "server_seconds": 0.0021,
            "client_seconds": 0.0009,
            "server_bytes_per_sample": 9633792,
            "client_bytes_per_sample": 3211264,
        },
        {"name": "output", "out_bytes": 8192, "server_seconds": 0.003, "client_seconds": 0.0001},
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with one value replaced, or removed for Ellipsis."""
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    *way, last = path.split("/")
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key: Any = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return document


def test_the_documented_example_is_read() -> None:
    profile = Profile.loads(json.dumps(DOCUMENT))
    assert profile.link == Link(1e9, 0.0005)
    assert profile.cut("layer3.5") == CutCost("layer3.5", 401408, 0.0021, 0.0009, 9633792, 3211264)
    assert (profile.samples, profile.batch_size, profile.epochs) == (50000, 256, 1)


def test_there_and_back() -> None:
    profile = Profile.loads(json.dumps(DOCUMENT))
    assert Profile.from_json(profile.to_json()) == profile
    assert Profile.loads(json.dumps(profile.to_json(), allow_nan=False)) == profile
    assert "server_memory_bytes" not in profile.to_json()
    full = changed("server_memory_bytes", 10) | {"client_memory_bytes": 20, "weight_bytes": 30, "details": {"a": 1}}
    assert (
        Profile.from_json(full).to_json().items()
        >= {
            "server_memory_bytes": 10,
            "client_memory_bytes": 20,
            "weight_bytes": 30,
        }.items()
    )


def test_what_may_be_left_out() -> None:
    least = {"input_bytes": 1, "cuts": [changed("cuts/0/name", "input")["cuts"][0], DOCUMENT["cuts"][2]]}
    profile = Profile.from_json(least)
    assert (profile.model, profile.link, profile.samples, profile.batch_size, profile.epochs) == (
        "unknown",
        None,
        0,
        256,
        1,
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cuts", ..., "'cuts' must be a list"),
        ("cuts", {}, "'cuts' must be a list"),
        ("cuts", [], "must start with 'input'"),
        ("cuts/0/name", "first", "must start with 'input' and end with 'output', got \\['first'\\]"),
        ("cuts/2/name", "last", "end with 'output'"),
        ("cuts/1/name", "input", "appears twice"),
        ("cuts/1/name", 3, "cut 1: needs an object with a 'name'"),
        ("cuts/1", "layer3", "cut 1: needs an object"),
        ("cuts/1/out_bytes", ..., "cut 'layer3.5': 'out_bytes' must be a number"),
        ("cuts/1/out_bytes", -1, "zero or more, got -1"),
        ("cuts/1/server_seconds", "fast", "got 'fast'"),
        ("cuts/1/client_seconds", True, "got True"),
        ("cuts/1/client_seconds", float("inf"), "got inf"),
        ("cuts/1/server_seconds", float("nan"), "got nan"),
        ("cuts/1/server_seconds", 10**400, "'server_seconds' must be a number"),
        ("cuts/1/flops", None, "'flops' must be a number"),
        ("input_bytes", ..., "'input_bytes' must be a number"),
        ("samples", "many", "'samples' must be a number"),
        ("link", 5, "'link' must be an object"),
        ("link/bandwidth_bits_per_s", 0, "give the measured rate"),
        ("link/bandwidth_bits_per_s", ..., "profile, link: 'bandwidth_bits_per_s'"),
        ("link/latency_seconds", -0.1, "'latency_seconds'"),
        ("server_memory_bytes", "2GB", "'server_memory_bytes' must be a number"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Profile.from_json(changed(path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", b"\xff\xfe", "[" * 10**6])
def test_what_is_no_profile(text: str | bytes) -> None:
    with pytest.raises(ProfileError, match="hapi profile --json"):
        Profile.loads(text)


def test_an_unknown_cut_lists_those_there_are() -> None:
    with pytest.raises(ProfileError, match=r"no cut 'layer9'.*input, layer3\.5, output"):
        Profile.from_json(DOCUMENT).cut("layer9")


def test_a_plan_is_json_and_text() -> None:
    plan = Plan(
        "mix", (Share("input", 0.25), Share("layer3.5", 0.75)), 12.5, 10.0, ("the link binds", "all would be slower")
    )
    assert json.loads(json.dumps(plan.to_json())) == {
        "policy": "mix",
        "cuts": [{"name": "input", "share": 0.25}, {"name": "layer3.5", "share": 0.75}],
        "predicted_seconds": 12.5,
        "limit_seconds": 10.0,
        "reasons": ["the link binds", "all would be slower"],
    }
    assert str(plan) == "plan mix: 25% input, 75% layer3.5\n  - the link binds\n  - all would be slower"
