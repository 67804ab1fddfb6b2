"""Measuring: node times add up to the whole, parts are sums of nodes, FLOPs are those of the formulas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from hapi.errors import ProfileError
from hapi.model import Graph, capture
from hapi.plan import Link, Profile
from profiler import Pipeline, TierProfile, TierRow, combine, measure, measuring
from profiler.flops import count_flops
from profiler.timing import time_nodes


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 10)]
    return capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 16, 16), name="toy")


@pytest.fixture(scope="module")
def tier(graph: Graph) -> TierProfile:
    return measure(graph, batch_size=2, repeats=2, load_seconds=0.004, read_seconds=0.001, input_bytes=700.0)


class FakeClock:
    """Advances by one second at every look."""

    def __init__(self) -> None:
        self.ticks: Iterator[int] = iter(range(10**9))

    def __call__(self) -> float:
        return float(next(self.ticks))


def test_node_times_are_scaled_to_the_whole_run(graph: Graph) -> None:
    # every node is entered and left one tick apart, every whole run too: equal shares of one second per two samples
    times = time_nodes(graph.whole, 2, repeats=3, limit_seconds=1e9, clock=FakeClock())
    assert times.whole == 0.5
    assert times.nodes.keys() == {node.name for node in graph.nodes}
    assert set(times.nodes.values()) == {0.5 / len(graph.nodes)}
    prefix, suffix = graph.split(len(graph.cuts) // 2)
    assert times.of(prefix) + times.of(suffix) == pytest.approx(times.whole)


def test_time_is_limited_to_one_turn_at_least(graph: Graph) -> None:
    calls: list[int] = []

    def clock() -> float:
        calls.append(1)
        return float(len(calls))

    time_nodes(graph.whole, 2, repeats=1000, limit_seconds=0.0, clock=clock)
    assert len(calls) < 10 + 2 * len(graph.nodes)


@pytest.mark.parametrize(("limit", "batch"), [(100.0, 8), (6.0, 3), (0.5, 1)])
def test_a_slow_network_is_timed_with_fewer_samples(graph: Graph, limit: float, batch: int) -> None:
    # by this clock one sample takes a second
    assert time_nodes(graph.whole, 8, repeats=1, limit_seconds=limit, clock=FakeClock()).batch == batch


def test_flops_are_those_of_the_formulas(graph: Graph) -> None:
    flops = count_flops(graph.whole)
    convolution, linear = 2 * 3 * 3 * 3 * 8 * 16 * 16, 2 * 128 * 10
    assert sum(flops.values()) == convolution + linear
    assert sorted(flops.values())[-2:] == [linear, convolution]


def test_a_row_per_cut(graph: Graph, tier: TierProfile) -> None:
    assert [row.name for row in tier.rows] == [cut.name for cut in graph.cuts]
    assert [row.out_bytes for row in tier.rows] == [cut.bytes_per_sample for cut in graph.cuts]
    first, last = tier.rows[0], tier.rows[-1]
    assert first.prefix_seconds == last.suffix_seconds == 0
    assert first.suffix_seconds == pytest.approx(last.prefix_seconds)
    assert last.prefix_seconds > 0
    for row in tier.rows:
        assert row.prefix_seconds + row.suffix_seconds == pytest.approx(last.prefix_seconds)
    flops = [row.flops for row in tier.rows]
    assert flops == sorted(flops)
    assert flops[0] == 0
    assert tier.weight_bytes == graph.weight_bytes
    assert (tier.device, tier.batch_size, tier.input_bytes) == ("cpu", 2, 700.0)
    assert (tier.load_seconds, tier.read_seconds, tier.decode_seconds) == (0.004, 0.001, 0.003)


def test_narrow_codecs_ship_less(graph: Graph, tier: TierProfile) -> None:
    narrow = measure(graph, batch_size=1, repeats=1, codec="bfloat16")
    assert [2 * row.out_bytes for row in narrow.rows[1:]] == [row.out_bytes for row in tier.rows[1:]]
    assert narrow.rows[0].out_bytes == tier.rows[0].out_bytes


def test_json_there_and_back(tier: TierProfile) -> None:
    assert TierProfile.from_json(json.loads(json.dumps(tier.to_json(), allow_nan=False))) == tier


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "one object per cut"),
        ({"rows": [{"name": "input"}]}, "row 0: 'out_bytes' is missing"),
        ({"load_seconds": -1}, "'load_seconds' must be a number"),
        ({"load_seconds": float("nan")}, "'load_seconds' must be a number"),
        ({"load_seconds": 10**400}, "'load_seconds' must be a number"),
        ({"batch_size": 10**400}, "'batch_size' must be a number"),
        ({"batch_size": 1.5}, "'batch_size' must be a number of kind int"),
        ({"device": 3}, "'device' must be text"),
        ({"details": []}, "'details' must be an object"),
        ({"speed": 1}, "unknown 'speed'"),
    ],
)
def test_bad_documents_are_refused(tier: TierProfile, change: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        TierProfile.from_json(tier.to_json() | change)
    with pytest.raises(ProfileError, match="not a JSON object"):
        TierProfile.from_json([])


def rows(scale: float) -> tuple[TierRow, ...]:
    return (
        TierRow("input", 600, 0.0, 5 * scale, 0, 600, 900),
        TierRow("mid", 400, 2 * scale, 3 * scale, 7, 800, 500),
        TierRow("output", 40, 5 * scale, 0.0, 9, 900, 40),
    )


def tiers(device: str) -> tuple[TierProfile, TierProfile]:
    server = TierProfile(
        device, 8, rows(0.001), load_seconds=0.004, read_seconds=0.001, decode_seconds=0.003, input_bytes=100.0,
        weight_bytes=77, encode_seconds_per_byte=1e-6,
    )  # fmt: skip
    client = TierProfile("cpu", 8, rows(0.01), decode_seconds=0.02, decode_seconds_per_byte=1e-5)
    return server, client


def test_combining_two_tiers_charges_every_second_to_one_of_them() -> None:
    server, client = tiers("cpu")
    profile = combine(server, client, link=Link(1e9), samples=9, batch_size=3, epochs=2, model="m", head_seconds=0.1)
    assert [cut.out_bytes for cut in profile.cuts] == [100.0, 400, 40]
    # input: only read here, received and decoded there; else read, decoded, encoded and run here
    assert [cut.server_seconds for cut in profile.cuts] == pytest.approx([0.001, 0.0064, 0.00904])
    assert [cut.client_seconds for cut in profile.cuts] == pytest.approx([0.171, 0.134, 0.1004])
    assert [cut.flops for cut in profile.cuts] == [0, 7, 9]
    assert profile.cuts[1].server_bytes_per_sample == 800
    assert profile.cuts[1].client_bytes_per_sample == 500
    assert (profile.input_bytes, profile.samples, profile.epochs, profile.weight_bytes) == (100.0, 9, 2, 77)


def test_on_an_accelerator_loading_and_computing_overlap() -> None:
    server, client = tiers("cuda:0")
    profile = combine(server, client, link=None, samples=0, batch_size=1)
    assert [cut.server_seconds for cut in profile.cuts] == pytest.approx([0.001, 0.0044, 0.005])


def test_bytes_are_counted_in_the_codec_of_the_client() -> None:
    server, client = tiers("cpu")
    half = replace(client, rows=tuple(replace(row, out_bytes=row.out_bytes // 2) for row in client.rows))
    profile = combine(server, half, link=Link(1e9), samples=9, batch_size=3)
    assert [cut.out_bytes for cut in profile.cuts] == [100.0, 200, 20]  # objects are shipped as they are
    assert profile.cuts[1].server_seconds == pytest.approx(0.0062)
    assert profile.cuts[1].client_seconds == pytest.approx(0.032)


def test_tiers_of_different_cuts_do_not_combine() -> None:
    server, client = tiers("cpu")
    other = TierProfile("cpu", 8, client.rows[:-1])
    with pytest.raises(ProfileError, match="different cuts"):
        combine(server, other, link=None, samples=0, batch_size=1)
    unknown_size = TierProfile("cpu", 8, rows(1.0))
    assert combine(unknown_size, unknown_size, link=None, samples=0, batch_size=1).input_bytes == 600


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_measuring_on_a_gpu(graph: Graph) -> None:
    from profiler import measure_peak, prefix_memory

    tier = measure(graph, device="cuda", batch_size=64)
    assert tier.device.startswith("cuda")
    assert tier.rows[-1].prefix_seconds > 0
    assert measure_peak(graph.whole, 8, "cuda") >= prefix_memory(graph.whole).live_bytes(8)


def test_a_device_that_fits_only_the_first_part_measures_that_and_estimates_the_rest() -> None:
    graph = capture(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 4)), torch.randn(2, 8))
    last = graph.cuts[2].name
    tier = measure(graph, repeats=1, last=last)
    assert tier.fits_to == last
    assert [row.name for row in tier.rows] == [cut.name for cut in graph.cuts]
    seconds = [row.prefix_seconds for row in tier.rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] > seconds[2] > 0
    found = combine(tier, measure(graph, repeats=1), link=Link(1e9), samples=100, batch_size=8)
    assert found.server_fits_to == last
    assert list(Pipeline.of(found).misfits()) == [cut.name for cut in graph.cuts[3:]]
    assert Profile.from_json(found.to_json()) == found


@pytest.mark.parametrize(("name", "other"), [("cpu_name", "Slow 1"), ("keeps_freed_memory", None), ("processors", 99)])
def test_what_was_measured_elsewhere_or_otherwise_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    """A home folder may be that of several machines; and a script that lets glibc give memory back is slower than
    `hapi train`, which measured before."""
    here = measuring.measured_with("abc", "cpu")
    assert measuring.measured_with("abc", "cpu") == here
    monkeypatch.setattr(measuring, name, lambda: other)
    assert measuring.measured_with("abc", "cpu") != here
