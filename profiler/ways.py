"""In which ways a cut's features can travel, and what each costs: measured on real features, before the job begins.

How much a compression saves depends on the values (after a ReLU most are zero, elsewhere there is nothing to gain), so
it is measured at every cut, on features of a few real samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from hapi.model import Cut, Graph, Program
from hapi.plan import INPUT
from hapi.wire import Codec, get_codec
from hapi.wire.allowed import Allowed
from hapi.wire.codecs import PACKED
from hapi.wire.columns import Column, read_columns
from hapi.wire.stream import ARROW_COMPRESSION, tensor_column
from profiler.tier import TierWay

T = TypeVar("T")

EXAMPLES = 4
"""Real samples whose features are looked at."""
MOST_BYTES = 2 * 2**20
"""Of a cut's features that are compressed to measure it; one sample at least."""
LEAST_SAVED = 0.05
"""A compression that makes features less than so much smaller is not offered."""
REPEATS = 2


def measure_ways(
    graph: Graph,
    examples: torch.Tensor | None,
    allowed: Allowed,
    *,
    copy_seconds_per_byte: tuple[float, float] = (0.0, 0.0),
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = perf_counter,
) -> dict[str, tuple[TierWay, ...]]:
    """Cut -> its allowed ways, the default first; `input` has none, stored objects travel as they are.

    Args:
        examples: inputs of real samples (n, ...). Without them nothing is known of compression: only codecs differ, and
            a compression that was named counts as saving nothing.
        copy_seconds_per_byte: to write and to read a byte that is neither cast nor compressed.
    """
    cuts = [cut for cut in graph.cuts if cut.name != INPUT]
    names = {cut.name: graph.split(cut)[0].output_names for cut in cuts}
    features = _features(graph, examples, sorted({name for group in names.values() for name in group}), device)
    ways = {}
    for cut in cuts:
        tensors = [features[name] for name in names[cut.name]] if features else None
        ways[cut.name] = tuple(_ways_of(cut, tensors, allowed, copy_seconds_per_byte, clock))
    return ways


def compress_seconds(clock: Callable[[], float] = perf_counter) -> float:
    """Seconds that this processor needs for a fixed piece of compressing: tells how two tiers compare in it."""
    generator = np.random.default_rng(0)
    values = np.maximum(generator.standard_normal(2**17, np.float32), 0).tobytes()
    codec = pa.Codec("lz4")
    return min(_timed(lambda: codec.compress(values), clock)[0] for _ in range(3))


def _features(
    graph: Graph, examples: torch.Tensor | None, names: Sequence[str], device: torch.device | str
) -> dict[str, torch.Tensor] | None:
    if examples is None or not len(examples):
        return None
    probe = Program(graph, f"{graph.name} up to every cut", graph.input_names, names).to(device)
    with torch.inference_mode():
        found = probe(examples[:EXAMPLES].to(device))
        return dict(zip(names, [tensor.to("cpu") for tensor in found], strict=True))


def _ways_of(
    cut: Cut,
    tensors: list[torch.Tensor] | None,
    allowed: Allowed,
    copy_seconds_per_byte: tuple[float, float],
    clock: Callable[[], float],
) -> list[TierWay]:
    found = []
    for name in allowed.codecs:
        codec = get_codec(name)
        plain = sum(codec.bytes_per_row(shape, dtype) for shape, dtype in zip(cut.shapes, cut.dtypes, strict=True))
        write, read = (plain * seconds for seconds in copy_seconds_per_byte)
        if tensors is None:
            found.append(TierWay(name, allowed.compressions[0], plain, write, read))
            continue
        rows = max(1, min(len(tensors[0]), MOST_BYTES // max(1, cut.bytes_per_sample)))
        part = [tensor[:rows] for tensor in tensors]
        for way in _measured(name, cut, part, allowed.compressions, clock):
            if way.compression == allowed.compressions[0] or way.out_bytes <= (1 - LEAST_SAVED) * plain:
                encode, decode = write + way.encode_seconds, read + way.decode_seconds
                found.append(replace(way, encode_seconds=encode, decode_seconds=decode))
    return found


def _measured(
    codec_name: str,
    cut: Cut,
    tensors: Sequence[torch.Tensor],
    compressions: Sequence[str],
    clock: Callable[[], float],
) -> Iterator[TierWay]:
    """What each compression makes of the tensors, per sample; those that would only repeat another are left out."""
    rows = len(tensors[0])
    written: dict[bool, _Written] = {}
    for compression in compressions:
        codec = get_codec(codec_name, compression)
        packs = any(map(codec.is_packed, cut.dtypes))
        if compression == PACKED and not packs and len(compressions) > 1:
            continue  # the same as zstd
        if packs not in written:
            written[packs] = _Written.of(codec, cut, tensors, clock)
        yield written[packs].compressed(compression, rows, clock)


@dataclass(frozen=True)
class _Written:
    """Features as a codec writes them, and the seconds to write and to read them."""

    codec: str
    buffers: list[pa.Buffer]
    encode_seconds: float
    decode_seconds: float

    @classmethod
    def of(cls, codec: Codec, cut: Cut, tensors: Sequence[torch.Tensor], clock: Callable[[], float]) -> _Written:
        names = [tensor_column(position) for position in range(len(tensors))]
        described = zip(names, cut.shapes, cut.dtypes, strict=True)
        columns = read_columns([field for each in described for field in codec.fields(*each)], names)
        encode, arrays = _best(partial(_encoded, codec, tensors), clock)
        decode, _ = _best(partial(_decoded, columns, arrays), clock)
        buffers = [buffer for array in arrays for buffer in array.buffers() if buffer]
        return cls(codec.name, buffers, encode, decode)

    def compressed(self, compression: str, rows: int, clock: Callable[[], float]) -> TierWay:
        """With a compression on top, as Arrow does it: buffer by buffer. Bytes and seconds per sample."""
        size, write, read = 0, self.encode_seconds, self.decode_seconds
        kind = ARROW_COMPRESSION[compression]
        codec = None if kind is None else pa.Codec(kind)
        for data in self.buffers:
            kept = data.size
            if codec is not None:
                seconds, short = _best(partial(codec.compress, data), clock)
                write += seconds
                read += _best(partial(codec.decompress, short, data.size), clock)[0]
                kept = min(kept, short.size)
            size += kept
        return TierWay(self.codec, compression, -(-size // rows), write / rows, read / rows)


def _encoded(codec: Codec, tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [array for tensor in tensors for array in codec.encode(tensor)]


def _decoded(columns: Sequence[Column], arrays: Sequence[Any]) -> list[torch.Tensor]:
    rest = iter(arrays)
    return [column.decode(*[next(rest) for _ in range(column.width)]) for column in columns]


def _best(work: Callable[[], T], clock: Callable[[], float]) -> tuple[float, T]:
    turns = [_timed(work, clock) for _ in range(REPEATS)]
    return min(seconds for seconds, _ in turns), turns[-1][1]


def _timed(work: Callable[[], T], clock: Callable[[], float]) -> tuple[float, T]:
    started = clock()
    result = work()
    return clock() - started, result
