"""The loader over a server that fails in the ways servers do: every sample once, or one clear error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest.mock import patch

import httpx
import pyarrow as pa
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from compute_client import DataLoader
from compute_client.outage import Outage
from hapi.backoff import RetryPolicy
from hapi.engine import has_bf16
from hapi.errors import (
    BusyError,
    CaptureError,
    ForbiddenError,
    InputError,
    ManifestError,
    MemoryBudgetError,
    SampleError,
    ServerUnreachableError,
    TransformError,
    TruncatedStreamError,
    UnauthorizedError,
    UnknownCutError,
    UnknownModelError,
    WireError,
)
from hapi.model import Graph
from hapi.plan import Plan, Share
from hapi.wire import StreamEncoder
from hapi.wire.protocol import ARROW_STREAM, CompressionName
from profiler.remote import ServerClient
from tests.compute_client.conftest import CLASSES, SAMPLES
from tests.compute_client.fake_server import FakeServer, problem, profile_of_graph
from tests.compute_client.test_loader_local import assert_no_threads, assert_same, broken_copy


@pytest.fixture
def server(pictures: Path, graph: Graph) -> FakeServer:
    return FakeServer(pictures, graph)


@pytest.fixture
def expected(pictures: Path, graph: Graph, transform: v2.Compose) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = DataLoader(pictures, backbone=graph, transform=transform, batch_size=4, shuffle=True, seed=1)
    return [batch for _ in range(2) for batch in loader]


def open_loader(server: FakeServer, graph: Graph | nn.Module, transform: object, **arguments: object) -> DataLoader:
    values = {"pushdown": "body", "batch_size": 4, "shuffle": True, "seed": 1, "retry_seconds": 5} | arguments
    return DataLoader(server.manifest.uri, backbone=graph, transform=transform, server=server.client(), **values)


@pytest.mark.parametrize("cache_bytes", [0, None])
@pytest.mark.parametrize("pushdown", ["none", "all", "stem", "body"])
def test_every_cut_gives_the_features_that_no_server_gives(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, pushdown: str, cache_bytes: int | None
) -> None:
    loader = open_loader(server, graph, transform, pushdown=pushdown, cache_bytes=cache_bytes)
    assert_same([batch for _ in range(2) for batch in loader], expected)
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 2 if cache_bytes == 0 else 1))
    assert server.calls["PUT models"] == (0 if pushdown == "none" else 1)
    assert loader.stats.requests == len(server.requests)
    assert (loader.stats.samples, loader.stats.retries) == (2 * SAMPLES, 0)
    assert loader.stats.bytes_received > 0
    assert loader.classes == CLASSES
    assert loader.plan.cuts[0].share == 1.0
    assert {request.epoch for request in server.requests} == ({0, 1} if cache_bytes == 0 else {0})
    assert_no_threads()


def test_a_module_is_captured_and_uploaded_once(
    server: FakeServer, backbone: nn.Module, transform: v2.Compose, expected: list
) -> None:
    assert_same(list(open_loader(server, backbone, transform)), expected[:9])
    assert_same(list(open_loader(server, backbone, transform)), expected[:9])
    assert server.calls["PUT models"] == 1


def test_a_mix_of_cuts_gives_the_same_batches(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    mix = Plan("mix", (Share("stem", 0.5), Share("output", 0.25), Share("input", 0.25)), 1.0, 1.0)
    with patch("compute_client.execution.measured_plan", return_value=(mix, profile_of_graph(graph))):
        loader = open_loader(server, graph, transform, pushdown="auto")
        assert_same([batch for _ in range(2) for batch in loader], expected)
    assert set(loader.stats.samples_by_cut) == {"stem", "output", "input"}
    assert sum(loader.stats.samples_by_cut.values()) == SAMPLES


@pytest.mark.parametrize("replan", [True, False], ids=["dealt late", "dealt beforehand"])
def test_a_given_mix_gives_the_same_batches_however_it_is_dealt(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, replan: bool
) -> None:
    given = Plan("given", (Share("stem", 0.5), Share("input", 0.5)), None, None)
    dealt = []
    for _ in range(2):
        loader = open_loader(server, graph, transform, pushdown=given, replan=replan, requests_in_flight=1)
        assert_same([batch for _ in range(2) for batch in loader], expected)
        assert set(loader.stats.samples_by_cut) == {"stem", "input"}
        dealt.append(loader.stats.samples_by_cut)
    assert replan or dealt[0] == dealt[1]
    assert loader.plan.cuts == given.cuts
    assert loader.plan.history == ()
    assert_no_threads()


def test_auto_goes_without_a_server_that_has_no_room_and_says_so(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    no_room = MemoryBudgetError("net up to output needs 9 MB; this server may use 1 MB.")
    with patch("compute_client.execution.measured_plan", side_effect=no_room):
        loader = open_loader(server, graph, transform, pushdown="auto")
        assert_same([batch for _ in range(2) for batch in loader], expected)
        assert (loader.plan.policy, [share.name for share in loader.plan.cuts]) == ("none", ["input"])
        assert str(no_room) in str(loader.plan)
        with pytest.raises(MemoryBudgetError, match="needs 9 MB"):
            open_loader(server, graph, transform, pushdown="mix").warm_up()


def test_a_full_server_is_waited_for_at_the_first_contact_as_well(pictures: Path, graph: Graph) -> None:
    with patch("compute_client.loader.ServerClient") as client, pytest.raises(TypeError):
        DataLoader(pictures, backbone=graph, server="http://127.0.0.1:1", busy_seconds=77)
    assert client.call_args.kwargs["retry"].busy_seconds == 77


def test_a_full_server_is_asked_for_less_at_once_and_later_for_more_again(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    server.trouble = lambda number: problem(429, "busy", "full.", **{"retry-after": "0"}) if number < 12 else None
    loader = open_loader(server, graph, transform, requests_in_flight=8, retry_seconds=0, cache_bytes=0)
    window = loader._execution._window
    iterator = iter(loader)
    batches = [next(iterator)]
    assert window.limit < 8
    batches += iterator
    assert_same(batches, expected[:9])
    assert loader.stats.refused == 12
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))
    for _ in range(8):
        list(loader)
    assert window.limit == 8


def test_a_server_that_is_full_for_long_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    outage = Outage("http://s", RetryPolicy(busy_seconds=600.0), lambda: seconds[0])
    with caplog.at_level("WARNING"):
        for seconds[0] in range(29):
            outage.met(BusyError("full."))
        outage.over()
        assert not caplog.records
        for seconds[0] in range(100, 200):
            outage.met(BusyError("full."))
        outage.over()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["full. Trying again for up to 10 min 00 s.", "http://s answers again after 99 s."]


def test_an_outage_is_told_once_with_its_end(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(number: int) -> None:
        if number in (2, 3, 4):
            raise httpx.ConnectError("refused")

    server.trouble = refuse
    loader = open_loader(server, graph, transform, requests_in_flight=1)
    with caplog.at_level("WARNING"):
        assert_same(list(loader), expected[:9])
    told = [record.getMessage() for record in caplog.records if record.name == "compute_client.outage"]
    assert len(told) == 2
    assert "refused" in told[0]
    assert "for up to 5 s" in told[0]
    assert "answers again after" in told[1]


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8"])
def test_narrow_codecs_are_near(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, codec: str
) -> None:
    exact = open_loader(server, graph, transform)
    narrow = open_loader(server, graph, transform, codec=codec, compression="zstd")
    for (features, _), (wanted, _) in zip(narrow, exact, strict=True):
        torch.testing.assert_close(features, wanted, rtol=2e-2, atol=2e-2)
        assert features.dtype == torch.float32


@pytest.mark.parametrize("compression", ["lz4", "zstd", "packed"])
def test_compression_changes_nothing(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, compression: CompressionName
) -> None:
    assert_same(list(open_loader(server, graph, transform, compression=compression)), expected[:9])
    assert {request.compression for request in server.requests} == {compression}


def test_each_cut_travels_as_the_plan_says(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    cuts = [cut.name for cut in graph.cuts if cut.name != "input"][-2:]
    shares = (Share(cuts[0], 0.5), Share(cuts[1], 0.5, "bfloat16", "zstd"))
    made = Plan("mix", shares, None, None)
    list(open_loader(server, graph, transform, pushdown=made, codecs=["float32", "bfloat16"]))
    asked = {(request.cut, request.codec, request.compression) for request in server.requests}
    assert asked == {(cuts[0], "float32", "none"), (cuts[1], "bfloat16", "zstd")}


def test_a_plan_changes_no_values_unasked(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    lossy = Plan("single", (Share("output", 1.0, "int8", "none"),), None, None)
    with pytest.raises(InputError, match="int8, which changes them"):
        open_loader(server, graph, transform, pushdown=lossy)


def test_only_missing_samples_are_asked_for_again(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    server.cut_off = lambda number: 1 if number < 6 else None
    loader = open_loader(server, graph, transform, requests_in_flight=4)
    assert_same(list(loader), expected[:9])
    # what was sent in full is not sent again; only the message that broke off may have been prepared twice
    assert all(count == 1 for count in server.sent.values())
    assert loader.stats.retries == 6
    asked = Counter(index for request in server.requests for index in request.indices)
    assert max(asked.values()) > 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda: problem(429, "busy", "full.", **{"retry-after": "0"}),
        lambda: problem(503, "store-unavailable", "the store rests."),
        lambda: httpx.Response(503, headers={"retry-after": "0"}),
        lambda: httpx.Response(502),
    ],
)
def test_passing_troubles_are_waited_out(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, answer
) -> None:
    server.trouble = lambda number: answer() if number % 2 == 0 else None
    loader = open_loader(server, graph, transform)
    assert_same(list(loader), expected[:9])
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))
    assert loader.stats.retries > 0


def test_a_server_that_comes_back_empty_is_told_again(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list
) -> None:
    loader = open_loader(server, graph, transform)
    iterator = iter(loader)
    batches = [next(iterator)]
    server.models.clear()
    server.datasets.clear()
    batches += iterator
    assert_same(batches, expected[:9])
    assert server.sent == Counter(dict.fromkeys(range(SAMPLES), 1))


def test_a_server_that_always_forgets_is_given_up(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    server.trouble = lambda number: problem(404, "unknown-model", "upload it first.")
    with pytest.raises(UnknownModelError):
        list(open_loader(server, graph, transform))


def test_a_dataset_that_changed_meanwhile_is_an_error(
    server: FakeServer, graph: Graph, transform: v2.Compose, pictures: Path, tmp_path: Path
) -> None:
    loader = open_loader(server, graph, transform)
    server.datasets.clear()
    server.manifest = FakeServer(broken_copy(pictures, tmp_path), graph).manifest
    with pytest.raises(ManifestError, match="changed while they were read"):
        list(loader)


def test_patience_ends(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    server.cut_off = lambda number: 0
    loader = open_loader(server, graph, transform, retry_seconds=0.05)
    with pytest.raises(TruncatedStreamError, match="broke off"):
        list(loader)
    server.trouble = lambda number: problem(429, "busy", "full.", **{"retry-after": "0"})
    with pytest.raises(BusyError, match=r"full\."):
        list(open_loader(server, graph, transform, busy_seconds=0.05))
    assert_no_threads()


def gone_after(server: FakeServer, requests: int) -> None:
    """Answers so many requests, and then none."""

    def trouble(number: int) -> httpx.Response | None:
        if number >= requests:
            raise httpx.ConnectError("connection refused")
        return None

    server.trouble = trouble


@pytest.mark.parametrize(
    "pushdown", ["body", "all", "none", Plan("given", (Share("stem", 0.5), Share("body", 0.5)), None, None)]
)
def test_a_loader_goes_on_without_a_server_that_is_gone_where_it_was_told_to(
    server: FakeServer, graph: Graph, transform: v2.Compose, expected: list, pushdown: str | Plan,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gone_after(server, 3)
    server.cut_off = lambda number: 1 if number == 2 else None  # what arrived of this span is not used
    loader = open_loader(
        server, graph, transform, pushdown=pushdown, fallback=True, retry_seconds=0.05, cache_bytes=0, buffer_bytes=1
    )
    first = list(loader.indexed())
    assert sorted(index for indices, _, _ in first for index in indices) == list(range(SAMPLES))
    asked = loader.stats.requests
    assert_same([(features, labels) for _, features, labels in first] + list(loader), expected)
    assert loader.stats.requests == asked  # it is not asked again
    (change,) = loader.plan.history
    assert [share.name for share in change.after] == ["input"]
    assert "the server is given up" in change.reason
    assert "refused" in change.reason
    assert SAMPLES < loader.stats.fallback_samples < 2 * SAMPLES
    assert sum(loader.stats.samples_by_cut.values()) == 2 * SAMPLES
    assert sum("the server is given up" in record.message for record in caplog.records) == 1
    assert_no_threads()


def test_what_cannot_be_read_here_is_told_before_anything_is_asked(
    server: FakeServer, graph: Graph, transform: v2.Compose, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"fallback: this process cannot read the data itself.*leave fallback out"):
        open_loader(server, graph, transform, fallback=str(tmp_path / "nowhere"))
    fewer = broken_copy(pictures, tmp_path)
    next(fewer.glob("*/*")).unlink()
    with pytest.raises(InputError, match=f"lists {SAMPLES} samples, this process {SAMPLES - 1}"):
        open_loader(server, graph, transform, fallback=fewer)
    assert not server.requests


def test_a_full_server_is_not_given_up(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    server.trouble = lambda number: problem(429, "busy", "full.", **{"retry-after": "0"})
    with pytest.raises(BusyError, match=r"full\."):
        list(open_loader(server, graph, transform, fallback=True, busy_seconds=0.05))
    assert_no_threads()


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (401, "unauthorized", UnauthorizedError),
        (403, "forbidden", ForbiddenError),
        (507, "does-not-fit", MemoryBudgetError),
        (422, "bad-transform", TransformError),
    ],
)
def test_final_errors_come_at_once(
    server: FakeServer, graph: Graph, transform: v2.Compose, status: int, kind: str, error: type[Exception]
) -> None:
    server.trouble = lambda number: problem(status, kind, "the reason.")
    loader = open_loader(server, graph, transform)
    with pytest.raises(error, match=r"the reason\."):
        list(loader)
    assert loader.stats.retries == 0


@pytest.mark.parametrize("pushdown", ["none", "body"])
def test_broken_pictures_are_found_on_either_side(
    pictures: Path, graph: Graph, transform: v2.Compose, tmp_path: Path, pushdown: str
) -> None:
    server = FakeServer(broken_copy(pictures, tmp_path), graph)
    loader = open_loader(server, graph, transform, pushdown=pushdown, shuffle=False)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    with pytest.raises(SampleError, match=r"sample 14.*damaged") as caught:
        next(iterator)
    assert caught.value.index == 14
    skipping = open_loader(server, graph, transform, pushdown=pushdown, shuffle=False, on_error="skip")
    assert sum(len(labels) for _, labels in skipping) == SAMPLES - 1
    assert skipping.stats.failed_samples == 1


def test_tokens_are_sent_and_wrong_ones_reported(
    pictures: Path, graph: Graph, transform: v2.Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeServer(pictures, graph, token="right")
    assert len(list(open_loader(server, graph, transform))) == 9
    with pytest.raises(UnauthorizedError):
        DataLoader(pictures, backbone=graph, transform=transform, server=server.client(token="wrong"))
    monkeypatch.setenv("HAPI_TOKEN", "right")
    client = ServerClient("http://fake", transport=httpx.MockTransport(server.handle))
    assert client.register("x").samples == SAMPLES
    assert "right" not in repr(client)


def test_an_unreachable_server_is_one_sentence(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    client = ServerClient("http://nowhere:1", retry=RetryPolicy(0.01), transport=httpx.MockTransport(refuse))
    with pytest.raises(ServerUnreachableError, match=r"http://nowhere:1.*hapi serve"):
        DataLoader(pictures, backbone=graph, transform=transform, server=client)


@pytest.mark.parametrize("url", ["", "storage:8470", "ftp://storage", "http://user:pw@storage", "http://s/?a=b"])
def test_impossible_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        ServerClient(url)


def test_what_cannot_be_pushed_down_says_so(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(CaptureError, match='pushdown="none"'):
        open_loader(server, Undecided(), transform, pushdown="all")
    assert len(list(open_loader(server, Undecided(), transform, pushdown="none"))) == 9
    with pytest.raises(TransformError):
        open_loader(server, graph, lambda image: image, pushdown="all")
    with pytest.raises(UnknownCutError, match="body"):
        open_loader(server, graph, transform, pushdown="bodi")


def test_pictures_are_not_trimmed_for_a_transform_that_no_server_knows(
    server: FakeServer, graph: Graph, transform: v2.Compose
) -> None:
    trimmed = Plan("by hand", (Share("input", 1.0, "float32", "trimmed"),), None, None)
    with pytest.raises(InputError, match="does not know this one: the transform runs here"):
        open_loader(server, graph, lambda image: transform(image), pushdown=trimmed)


def test_a_manifest_of_other_files_is_refused(
    server: FakeServer, graph: Graph, transform: v2.Compose, pictures: Path, tmp_path: Path
) -> None:
    from hapi.data import build_manifest

    (tmp_path / "crane").mkdir()
    (tmp_path / "crane" / "00.jpg").write_bytes((pictures / "crane" / "00.jpg").read_bytes())
    with pytest.raises(ManifestError, match="33 samples, this process 1"):
        DataLoader(build_manifest(str(tmp_path)), backbone=graph, transform=transform, server=server.client())


def test_requests_are_in_flight_together_but_bounded(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    list(open_loader(server, graph, transform, requests_in_flight=3))
    assert 1 <= server.most_at_once <= 3
    alone = FakeServer(Path(server.manifest.uri.removeprefix("file://")), graph)
    list(open_loader(alone, graph, transform, buffer_bytes=1))
    assert alone.most_at_once == 1


def test_leaving_early_stops_asking(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    with open_loader(server, graph, transform, requests_in_flight=1, batch_size=1) as loader:
        for _ in loader:
            break
        assert_no_threads()
        asked = len(server.requests)
        assert len(list(loader)) == SAMPLES
    assert len(server.requests) > asked


def test_nonsense_answers_are_not_trusted(pictures: Path, graph: Graph, transform: v2.Compose) -> None:
    from hapi.errors import HapiError

    def html(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<h1>hello</h1>")

    with pytest.raises(HapiError, match="HAPI storage server"):
        ServerClient("http://web", transport=httpx.MockTransport(html)).status()
    server = FakeServer(pictures, graph)
    server.trouble = lambda number: httpx.Response(200, html="<h1>hello</h1>")
    with pytest.raises(HapiError, match="text/html"):
        list(open_loader(server, graph, transform))


def without_samples(server: FakeServer, encoder: StreamEncoder) -> None:
    """Every answer is one message without rows, which costs nothing to send and may say any shape."""
    schema = pa.ipc.read_schema(pa.py_buffer(encoder.header()))
    message = pa.RecordBatch.from_pylist([], schema=schema).serialize().to_pybytes()
    parts = [encoder.header(), message, encoder.end()]
    server.trouble = lambda number: httpx.Response(200, headers={"content-type": ARROW_STREAM}, content=iter(parts))


@pytest.mark.parametrize(("shape", "dtype"), [((2**30,), torch.float32), (None, torch.float64)])
def test_tensors_that_are_not_the_cut_s_are_refused_before_memory_is_taken_for_them(
    server: FakeServer, graph: Graph, transform: v2.Compose, shape: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    without_samples(server, StreamEncoder([shape or graph.cut("body").shapes[0]], [dtype], cut="body"))
    with pytest.raises(WireError, match=r"cut 'body' came as .* per sample instead of"):
        list(open_loader(server, graph, transform))


def test_messages_without_samples_are_no_progress(server: FakeServer, graph: Graph, transform: v2.Compose) -> None:
    cut = graph.cut("body")
    without_samples(server, StreamEncoder(cut.shapes, cut.dtypes, cut="body"))
    with pytest.raises(TruncatedStreamError, match="Given up after"):
        list(open_loader(server, graph, transform, retry_seconds=0.2))


@pytest.mark.skipif(not has_bf16("cpu"), reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_server_is_told_the_precision(
    server: FakeServer, graph: Graph, transform: v2.Compose, precision: str
) -> None:
    loader = open_loader(server, graph, transform, precision=precision)
    list(loader)
    assert {request.precision for request in server.requests} == {precision}
