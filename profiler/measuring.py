"""Measuring a captured backbone on one tier: a row per cut with its bytes, FLOPs, seconds and peak memory."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from hapi.allocator import keeps_freed_memory
from hapi.engine import Choice, Precision
from hapi.engine.precision import rewritten
from hapi.machine import cpu_name, processors
from hapi.model import Cut, Graph, Program
from hapi.plan import INPUT, OUTPUT
from hapi.wire import Codec, get_codec
from hapi.wire.allowed import Allowed
from profiler.flops import count_flops
from profiler.memory import prefix_memory
from profiler.tier import TierProfile, TierRow, TierWay
from profiler.timing import time_nodes
from profiler.ways import EXAMPLES, compress_seconds, measure_ways
from profiler.wire import wire_seconds_per_byte

CPU_BATCH, DEVICE_BATCH = 8, 64
"""Batch sizes at which CPUs and accelerators are past the steep part of their throughput, and that most models fit."""
MEASUREMENT_FORMAT = 3
"""Counted up when what is measured, or how, changes: what was remembered before is then measured anew."""


def measure(
    graph: Graph,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    repeats: int = 5,
    limit_seconds: float = 20.0,
    engine: Choice = "auto",
    precision: Precision = "float32",
    codec: str = "float32",
    last: str | None = None,
    load_seconds: float = 0.0,
    read_seconds: float = 0.0,
    decode_seconds: float | None = None,
    input_bytes: float = 0.0,
    allowed: Allowed | None = None,
    examples: torch.Tensor | None = None,
) -> TierProfile:
    """Times every node of a graph once on `device` and sums them up for the two parts at every cut.

    Args:
        graph: the captured backbone.
        device: on which to run it.
        batch_size: of the timed runs, at most; by default 8 on a CPU and 64 on an accelerator.
        repeats: timed runs, of which the fastest counts.
        limit_seconds: after which no further run is started; slow networks are timed with smaller batches.
        engine, precision: of the engine that will run it. What it runs from the first call on is measured; that it may
            be compiled later is left to those who measure rates while they work.
        codec: in which `out_bytes` are counted.
        last: the deepest cut that this device has the memory to run, if that is not `output`. What comes after it is
            not run: its seconds are estimated from its FLOPs.
        load_seconds, read_seconds, decode_seconds: per sample, to read, decode and transform, and of that only to read,
            only to decode and transform (by default the difference); see `measure_loading`.
        input_bytes: mean size of a stored object.
        allowed: codecs and compressions whose costs at every cut are measured too, on the features of `examples`
            (n, ...), inputs of real samples; the first codec is then that of `out_bytes`.
    """
    is_rewritten = precision != "float32" or (engine != "eager" and torch.device(device).type == "cpu")

    def as_run(part: Program) -> Program:
        return rewritten(part, precision) if is_rewritten else part

    everything = as_run(graph.whole)
    whole = (everything if last is None else as_run(graph.split(last)[0])).to(device)
    batch = batch_size or (CPU_BATCH if whole.device.type == "cpu" else DEVICE_BATCH)
    times = time_nodes(whole, batch, repeats=repeats, limit_seconds=limit_seconds)
    flops = count_flops(everything)
    codec = allowed.codecs[0] if allowed else codec
    per_flop = times.whole / max(1, sum(flops[node.name] for node in whole.nodes))
    seconds = {node.name: times.nodes.get(node.name, per_flop * flops[node.name]) for node in everything.nodes}
    writer = get_codec(codec)
    encode, decode = wire_seconds_per_byte(get_codec("float32"))
    ways: dict[str, tuple[TierWay, ...]] = {}
    if allowed is not None and allowed.is_choice:
        copied = (encode, decode)
        some = None if examples is None else examples[: _examples(times.whole, limit_seconds)]
        ways = measure_ways(graph, some, allowed, copy_seconds_per_byte=copied, device=whole.device)
    rows = []
    for cut in graph.cuts:
        prefix, suffix = map(as_run, graph.split(cut))
        rows.append(
            TierRow(
                name=cut.name,
                out_bytes=cut_bytes(cut, writer),
                prefix_seconds=_total(seconds, prefix),
                suffix_seconds=_total(seconds, suffix),
                flops=sum(flops[node.name] for node in prefix.nodes),
                prefix_bytes_per_sample=prefix_memory(prefix).per_sample_bytes,
                suffix_bytes_per_sample=prefix_memory(suffix).per_sample_bytes,
                ways=ways.get(cut.name, ()),
            )
        )
    if codec != "float32":
        encode, decode = wire_seconds_per_byte(writer)
    return TierProfile(
        device=str(whole.device),
        batch_size=times.batch,
        rows=tuple(rows),
        load_seconds=load_seconds,
        read_seconds=read_seconds,
        decode_seconds=max(0.0, load_seconds - read_seconds) if decode_seconds is None else decode_seconds,
        input_bytes=input_bytes,
        weight_bytes=graph.weight_bytes,
        encode_seconds_per_byte=encode,
        decode_seconds_per_byte=decode,
        compress_seconds=compress_seconds(),
        fits_to=OUTPUT if last is None else last,
        details={"threads": torch.get_num_threads(), "torch": str(torch.__version__), "codec": codec},
    )


def measured_with(digest: str, device: torch.device | str, threads: int | None = None) -> dict[str, Any]:
    """All that the measurement of a graph on a device depends on, as the key under which it is remembered."""
    place = torch.device(device)
    return {
        "what": "graph",
        "format": MEASUREMENT_FORMAT,
        "model": digest,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} cpu",
        "cpu": cpu_name(),  # a home folder may be that of several machines
        "keeps_memory": keeps_freed_memory(),
        "processors": processors(),
        "threads": threads or torch.get_num_threads(),
        "torch": str(torch.__version__),
        "engine": "eager",
    }


def _examples(seconds_per_sample: float, limit_seconds: float) -> int:
    """Samples that the network computes in a quarter of the time, one at least."""
    return max(1, min(EXAMPLES, int(limit_seconds / 4 / max(seconds_per_sample, 1e-9))))


def _total(seconds: Mapping[str, float], program: Program) -> float:
    return sum((seconds[node.name] for node in program.nodes), 0.0)


def cut_bytes(cut: Cut, codec: Codec) -> int:
    """Bytes per sample that a cut ships in a codec, before compression. At `input` the tensor's, not the object's."""
    if cut.name == INPUT:
        return cut.bytes_per_sample
    return sum(codec.bytes_per_row(shape, dtype) for shape, dtype in zip(cut.shapes, cut.dtypes, strict=True))
