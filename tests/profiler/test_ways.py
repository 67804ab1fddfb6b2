"""Codecs and compressions in the plan: offered where they pay, lossy ones only if named, never at others' cost."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_profiles import BYTES, COST, profile_of, profiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hapi.errors import InputError, ProfileError
from hapi.model import Graph, capture
from hapi.plan import CutCost, Link, Plan, Profile, Share, WireCost
from hapi.wire import Allowed
from profiler import Pipeline, TierProfile, combine, measure, plan
from profiler.policies import TIE
from profiler.ways import measure_ways

EVERYTHING = Allowed(("float32", "bfloat16", "int8"), "auto")


@st.composite
def profiles_with_ways(draw: st.DrawFn) -> Profile:
    """Any profile whose cuts may each travel in up to four ways, the first of which is the cut's own."""
    profile = draw(profiles(max_cuts=4))
    cuts = []
    for cut in profile.cuts:
        others = draw(st.lists(st.tuples(BYTES, COST, COST), max_size=3))
        ways = [(cut.out_bytes, cut.server_seconds, cut.client_seconds), *others]
        wire = tuple(WireCost(f"codec{number}", "none", *way) for number, way in enumerate(ways))
        cuts.append(replace(cut, wire=wire if others else ()))
    return replace(profile, cuts=tuple(cuts))


def flattened(profile: Profile, ways: dict[str, int]) -> Profile:
    """The profile of somebody for whom each cut has only the one way."""
    cuts = []
    for cut in profile.cuts:
        if cut.wire:
            way = cut.wire[ways.get(cut.name, 0)]
            cut = replace(
                cut,
                out_bytes=way.out_bytes,
                server_seconds=way.server_seconds,
                client_seconds=way.client_seconds,
                wire=(),
            )
        cuts.append(cut)
    return replace(profile, cuts=tuple(cuts))


@settings(max_examples=150, deadline=None)
@given(profiles_with_ways())
def test_a_choice_of_ways_is_never_worse_than_none(profile: Profile) -> None:
    chosen, plain = plan(profile), plan(flattened(profile, {}))
    single = plan(flattened(profile, {}), "single")
    assert chosen.predicted_seconds is not None
    assert single.predicted_seconds is not None
    assert chosen.predicted_seconds <= single.predicted_seconds * (1 + TIE + 1e-6)
    assert chosen.limit_seconds is not None
    assert plain.limit_seconds is not None
    assert chosen.limit_seconds <= plain.limit_seconds * (1 + 1e-6)
    best = plan(profile, "single").predicted_seconds
    assert best is not None
    assert best <= single.predicted_seconds * (1 + TIE + 1e-6)


@settings(max_examples=150, deadline=None)
@given(profiles_with_ways())
def test_a_cut_is_in_a_plan_once_and_predicted_as_it_travels(profile: Profile) -> None:
    made = plan(profile)
    assert len({share.name for share in made.cuts}) == len(made.cuts)
    ways = {share.name: int(share.codec.removeprefix("codec")) for share in made.cuts if share.codec}
    same = flattened(profile, ways)
    pipeline = Pipeline.of(same)
    shares = sum(share.share * pipeline.only(share.name) for share in made.cuts)
    assert pipeline.seconds(np.asarray(shares)) == pytest.approx(made.predicted_seconds, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(profiles_with_ways())
def test_profiles_with_ways_survive_json(profile: Profile) -> None:
    assert Profile.loads(json.dumps(profile.to_json())) == profile


def test_profiles_without_ways_say_nothing_of_them() -> None:
    profile = profile_of((100, 1e-3, 1e-3), (10, 1e-3, 1e-3), samples=10)
    assert all("wire" not in cut for cut in profile.to_json()["cuts"])
    assert plan(profile).to_json()["cuts"] == [{"name": "output", "share": 1.0}]


def with_output_ways(*ways: tuple[str, str, float, float, float], bits_per_s: float) -> Profile:
    cuts = (
        CutCost("input", 400_000, 1e-3, 1.0),
        CutCost("output", *ways[0][2:], wire=tuple(WireCost(*way) for way in ways)),
    )
    return Profile("toy", 400_000, cuts, Link(bits_per_s), samples=1000)


def test_compression_is_chosen_on_a_slow_link_and_not_on_a_fast_one() -> None:
    ways = (("float32", "none", 400_000, 0.010, 0.001), ("float32", "zstd", 100_000, 0.012, 0.002))
    slow = plan(with_output_ways(*ways, bits_per_s=1e7))
    assert slow.cuts == (Share("output", 1.0, "float32", "zstd"),)
    assert slow.to_json()["cuts"] == [{"name": "output", "share": 1.0, "codec": "float32", "compression": "zstd"}]
    assert any("as float32 (zstd)" in reason for reason in slow.reasons)
    assert "output (float32, zstd)" in str(slow)
    fast = plan(with_output_ways(*ways, bits_per_s=1e11))
    assert fast.cuts == (Share("output", 1.0),)


def test_an_unknown_policy_is_told_each_cut_once_however_many_ways_it_may_travel() -> None:
    ways = (("float32", "none", 400_000, 0.010, 0.001), ("float32", "zstd", 100_000, 0.012, 0.002))
    with pytest.raises(InputError, match=r"nor a cut of 'toy' \(input, output\)"):
        plan(with_output_ways(*ways, bits_per_s=1e9), "best")


def test_a_way_that_is_worse_in_everything_is_not_a_column() -> None:
    ways = (
        ("float32", "none", 100, 1e-3, 1e-3),
        ("float32", "lz4", 100, 2e-3, 1e-3),
        ("float32", "zstd", 100, 1e-3, 1e-3),
        ("int8", "none", 25, 2e-3, 2e-3),
    )
    columns = Pipeline.of(with_output_ways(*ways, bits_per_s=1e9)).columns
    assert [(cut.wire[0].codec, cut.wire[0].compression) for cut in columns if cut.wire] == [
        ("float32", "none"),
        ("int8", "none"),
    ]


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({}, "must be a list"),
        ([1], "'codec'"),
        ([{"codec": "float32"}], "'compression'"),
        ([{"codec": "float32", "compression": "none"}], "'out_bytes'"),
        (
            [{"codec": "x", "compression": "y", "out_bytes": 1, "server_seconds": -1, "client_seconds": 0}],
            "x y.*server_",
        ),
    ],
)
def test_bad_ways_are_refused(wire: object, message: str) -> None:
    document = profile_of((100, 1e-3, 1e-3), (10, 1e-3, 1e-3)).to_json()
    document["cuts"][1]["wire"] = wire
    with pytest.raises(ProfileError, match=message):
        Profile.from_json(document)


class Network(nn.Module):
    """A dense part, then a ReLU that leaves about a tenth of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, padding=1)
        self.sparse = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.end = nn.Flatten()
        nn.init.constant_(self.sparse[0].bias, -1.0)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.end(self.sparse(self.dense(images)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Network(), torch.randn(2, 3, 32, 32), name="network")


def test_compression_is_offered_where_values_are_sparse(graph: Graph) -> None:
    ways = measure_ways(graph, torch.randn(4, 3, 32, 32), EVERYTHING)
    assert "input" not in ways
    sparse = {(way.codec, way.compression): way for way in ways["sparse"]}
    plain = sparse["float32", "none"]
    assert plain.out_bytes == 8 * 32 * 32 * 4
    assert sparse["float32", "zstd"].out_bytes < plain.out_bytes / 2
    assert sparse["float32", "packed"].out_bytes < plain.out_bytes / 2
    assert sparse["bfloat16", "none"].out_bytes == plain.out_bytes / 2
    assert sparse["int8", "none"].out_bytes == 8 * 32 * 32 + 8 * 8
    assert all(way.encode_seconds > 0 and way.decode_seconds > 0 for way in ways["sparse"])
    for way in ways["dense"]:
        uncompressed = next(other for other in ways["dense"] if (other.codec, other.compression) == (way.codec, "none"))
        assert way == uncompressed or way.out_bytes <= 0.95 * uncompressed.out_bytes


@pytest.mark.parametrize("compression", ["zstd", "packed"])
@pytest.mark.parametrize("codec", ["float32", "bfloat16"])
def test_a_compression_that_was_named_is_the_only_one(graph: Graph, codec: str, compression: str) -> None:
    ways = measure_ways(graph, torch.randn(4, 3, 32, 32), Allowed((codec,), compression))
    assert {(way.codec, way.compression) for found in ways.values() for way in found} == {(codec, compression)}


def test_packing_is_measured_only_where_it_differs_from_zstd(graph: Graph) -> None:
    ways = measure_ways(graph, torch.randn(4, 3, 32, 32), EVERYTHING)
    assert {way.codec for found in ways.values() for way in found if way.compression == "packed"} == {"float32"}


def test_features_that_are_all_zeros_cost_next_to_nothing() -> None:
    dead = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Threshold(1e9, 0.0)), torch.randn(2, 3, 32, 32), name="dead")
    ways = measure_ways(dead, torch.randn(4, 3, 32, 32), Allowed(compression="auto"))
    found = {way.compression: way.out_bytes for way in ways["output"]}
    assert found["packed"] < found["none"] / 500


def test_without_real_samples_only_codecs_differ(graph: Graph) -> None:
    ways = measure_ways(graph, None, EVERYTHING)["sparse"]
    assert [(way.codec, way.compression) for way in ways] == [
        ("float32", "none"),
        ("bfloat16", "none"),
        ("int8", "none"),
    ]


@pytest.fixture(scope="module")
def tier(graph: Graph) -> TierProfile:
    return measure(
        graph, batch_size=2, repeats=1, input_bytes=500.0, allowed=EVERYTHING, examples=torch.randn(4, 3, 32, 32)
    )


def test_a_tier_with_ways_survives_json(tier: TierProfile) -> None:
    assert TierProfile.from_json(json.loads(json.dumps(tier.to_json()))) == tier
    assert tier.compress_seconds > 0
    document = json.loads(json.dumps(tier.to_json()))
    document["rows"][1]["ways"][0]["out_bytes"] = "many"
    with pytest.raises(ProfileError, match="out_bytes"):
        TierProfile.from_json(document)


def test_writing_is_charged_to_the_server_at_its_speed_and_reading_to_the_client(tier: TierProfile) -> None:
    slow = replace(tier, compress_seconds=3 * tier.compress_seconds)
    profile = combine(slow, tier, link=Link(1e9), samples=8, batch_size=4, head_seconds=0.5)
    assert profile.cuts[0].wire == ()
    for cut, row in zip(profile.cuts[1:], tier.rows[1:], strict=True):
        assert len(cut.wire) == len(row.ways)
        assert cut.out_bytes == cut.wire[0].out_bytes
        assert cut.server_seconds == cut.wire[0].server_seconds
        assert cut.client_seconds == pytest.approx(cut.wire[0].client_seconds)
        for way, measured in zip(cut.wire, row.ways, strict=True):
            assert way.encode_seconds == pytest.approx(3 * measured.encode_seconds)
            assert way.server_seconds == pytest.approx(row.prefix_seconds + 3 * measured.encode_seconds)
            assert way.client_seconds == pytest.approx(row.suffix_seconds + measured.decode_seconds + 0.5)


def test_what_is_allowed_is_checked() -> None:
    for bad in [{"codecs": ()}, {"codecs": ("int8", "int8")}, {"codecs": ("int3",)}, {"compression": "gzip"}]:
        with pytest.raises(InputError):
            Allowed(**bad)  # type: ignore[arg-type]
    assert Allowed().default == ("float32", "none")
    assert not Allowed(("int8",)).is_choice
    assert Allowed(compression="auto").is_choice
    Allowed().check("float32")
    with pytest.raises(InputError, match="changes them"):
        Allowed().check("int8")


def test_plans_name_ways_in_json_only_where_they_decided() -> None:
    made = Plan("mix", (Share("a", 0.5), Share("b", 0.5, "int8", "none")), 1.0, 1.0)
    assert made.to_json()["cuts"] == [
        {"name": "a", "share": 0.5},
        {"name": "b", "share": 0.5, "codec": "int8", "compression": "none"},
    ]
    assert "50% b (int8)" in str(made)
