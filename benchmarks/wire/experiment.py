"""Sends features over the testbed's link in every way, and makes a row of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.bars import bars
from benchmarks.bench.photographs import mean_bytes, photographs
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BANDWIDTH, BYTES, LIMIT, MODEL, SECONDS, SYSTEM, Column, number, share, times
from benchmarks.testbed.services import Server, Store, start_server
from benchmarks.testbed.testbed import Testbed, open_testbed
from hapi.errors import InputError
from hapi.units import parse_bandwidth
from hapi.wire import CODECS
from hapi.wire.stream import COMPRESSIONS

OBJECTS = "objects"
WAYS = (
    "float32", "float32+lz4", "float32+zstd", "float32+packed", "float16", "bfloat16", "bfloat16+zstd", "int8",
    "int8+zstd", OBJECTS,
)  # fmt: skip
CACHE_BYTES = 2 * 2**30
GB = 1e9
TIMEOUT_SECONDS = 600.0

COLUMNS = (
    MODEL,
    BANDWIDTH,
    SYSTEM,
    SECONDS,
    BYTES,
    LIMIT,
    Column("filled", "link filled", share),
    Column("ratio", "smaller", times),
    Column("server_cpu_seconds_per_gb", "server s/GB", number),
    Column("client_cpu_seconds_per_gb", "client s/GB", number),
    Column("gb_per_s", "features GB/s", number),
)
PLOTS = (
    Plot(
        "filled",
        "How full the link is",
        bars("filled", "what the bytes alone take, of the time", share, line=1.0),
        "Kept features are sent; frames of Ethernet and TCP/IP take about 4 % of a link.",
    ),
    Plot(
        "server_cpu",
        "What sending costs the server's processors",
        bars("server_cpu_seconds_per_gb", "seconds per GB of features", number),
        f"GB are those of the features as float32, whatever travels; of `{OBJECTS}` those of the photographs.",
    ),
)


@dataclass(frozen=True)
class Settings:
    """What is sent, in which ways, and for how long."""

    model: str
    cut: str
    ways: tuple[str, ...]
    bandwidth: str
    seconds: float
    in_flight: int
    samples: int
    data: str | None
    weights: str
    seed: int
    testbed: str


def parse_way(text: str) -> tuple[str, str]:
    """`int8+zstd` as (codec, compression); InputError for names that do not exist."""
    codec, _, compression = text.partition("+")
    compression = compression or "none"
    if codec not in CODECS or compression not in COMPRESSIONS:
        raise InputError(
            f"--way {text!r}: say a codec ({', '.join(CODECS)}), with + and a compression ({', '.join(COMPRESSIONS)}) "
            f"if you like, or {OBJECTS}."
        )
    return codec, compression


def run(settings: Settings, *, report: Path | None = None, as_json: bool = False) -> None:
    """One row per way."""
    rate = parse_bandwidth(settings.bandwidth)
    ways = settings.ways or WAYS
    for way in ways:
        if way != OBJECTS:
            parse_way(way)
    with (
        Bench(
            "wire", as_json=as_json, report=report, columns=COLUMNS, title="Features on the wire", plots=PLOTS
        ) as bench,
        photographs(settings.data, settings.samples, seed=settings.seed) as folder,
        open_testbed(settings.testbed) as bed,
    ):
        for remark in bed.remarks:
            bench.remark(remark)
        if settings.weights == "none":
            bench.remark("weights are random: how well features compress with trained ones is another matter")
        store = Store(
            folder.as_uri(),
            settings.samples,
            int(mean_bytes(folder) * settings.samples),
            {"HAPI_SERVER_FEATURE_CACHE_BYTES": str(CACHE_BYTES)},
        )
        with start_server(bed, store) as server:
            bench.say("filling the server's cache ...")
            _receive(bed, server, store, settings, "float32", 0.0)
            bed.link.shape(rate)
            for way in ways:
                model = settings.model.removeprefix("torchvision:")
                with bench.trial(system=way, model=model, bandwidth_bits_per_s=rate) as trial:
                    trial.measured(**measure(bed, server, store, settings, way, rate))


def measure(bed: Testbed, server: Server, store: Store, settings: Settings, way: str, rate: float) -> dict[str, Any]:
    """What one way gives, as fields of a row."""
    before = bed.cpu_seconds(bed.storage)
    told = _receive(bed, server, store, settings, way, settings.seconds)
    server_seconds = bed.cpu_seconds(bed.storage) - before
    gigabytes = told["feature_bytes"] / GB
    served, carried = ((told[f"first_pass_{name}"] + told[name]) / GB for name in ("feature_bytes", "bytes"))
    limit = 8 * told["bytes"] / rate
    return {
        "samples": told["samples"],
        "seconds": told["seconds"],
        "bytes": told["bytes"],
        "limit_seconds": limit,
        "filled": limit / told["seconds"],
        "cut": "input" if way == OBJECTS else settings.cut,
        "ratio": told["feature_bytes"] / told["bytes"],
        "server_cpu_seconds_per_gb": server_seconds / served,
        "client_cpu_seconds_per_gb": told["cpu_seconds"] / gigabytes,
        "server_cpu_seconds_per_wire_gb": server_seconds / carried,
        "client_cpu_seconds_per_wire_gb": told["cpu_seconds"] * GB / told["bytes"],
        "gb_per_s": gigabytes / told["seconds"],
        "client_peak_rss_bytes": told["peak_rss_bytes"],
    }


def _receive(
    bed: Testbed, server: Server, store: Store, settings: Settings, way: str, seconds: float
) -> dict[str, Any]:
    """Runs the receiver on the compute host: one pass over the samples at least."""
    cut, codec, compression = ("input", "float32", "none") if way == OBJECTS else (settings.cut, *parse_way(way))
    words = [sys.executable, "-m", "benchmarks.wire.receiver", "--server", server.url, "--data", store.uri]
    words += ["--model", settings.model, "--weights", settings.weights, "--cut", cut, "--codec", codec]
    words += ["--compression", compression, "--in-flight", str(settings.in_flight), "--seconds", str(seconds)]
    return bed.run(bed.compute, words, server.variables, seconds=TIMEOUT_SECONDS).document
