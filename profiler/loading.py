"""What it costs to get one sample from the store into a tensor: reading, decoding, transforming."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from hapi.data import Manifest, ObjectStore, Sample, TransformSpec, load_sample, read_sample
from hapi.data.decoding import Load, get_ready
from hapi.errors import ImageError, InputError, ManifestError, TransformError
from hapi.machine import processors
from profiler.tier import TierProfile

DEFAULT_SAMPLES = 32
MAX_SAMPLES = 1024
PASSES, ENOUGH_SECONDS = 3, 0.5
"""So often are the samples passed, unless that has taken long enough already; the fastest pass counts. One pass takes a
fraction of a second, and what another program does meanwhile would be taken for a slow machine."""

_UNFIT = (ImageError, TransformError)
"""What is wrong with a single sample, which the job itself tells of, or leaves out."""


@dataclass(frozen=True)
class LoadCost:
    """Seconds per sample, wall time at the tier's parallelism.

    Attributes:
        load_seconds: read, decoded and transformed, all overlapping as they will.
        read_seconds: only read.
        decode_seconds: only decoded and transformed.
        input_bytes: mean stored size over the whole dataset.
        failed: how many of the measured samples could not be decoded or transformed (they count like the others).
    """

    load_seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    input_bytes: float = 0.0
    failed: int = 0


def measure_loading(
    store: ObjectStore,
    manifest: Manifest,
    transform: TransformSpec,
    *,
    samples: int = DEFAULT_SAMPLES,
    workers: int | None = None,
    load: Load = load_sample,
    clock: Callable[[], float] = perf_counter,
) -> LoadCost:
    """Loads some samples, spread evenly over a dataset, with `workers` threads (by default one per processor), which
    decode with `load`.

    Holds the stored bytes of at most `samples` (at most 1024) objects. Raises ManifestError for an empty dataset and
    whatever the store raises; samples that are no images, or that the transform fails on, are counted, not raised. But
    TransformError if it fails on each of them.
    """
    count = min(samples, len(manifest), MAX_SAMPLES)
    if count < 1:
        raise ManifestError(f"dataset {manifest.uri}: there is no sample to measure.")
    chosen = [manifest.sample(index) for index in spread(len(manifest), count)]
    get_ready(load)

    def read(sample: Sample) -> bytes:
        return read_sample(store, sample)

    def decode(item: tuple[int, bytes]) -> InputError | None:
        return _fault(item, transform, load)

    def both(item: tuple[int, Sample]) -> InputError | None:
        return decode((item[0], read(item[1])))

    with ThreadPoolExecutor(workers or processors(), thread_name_prefix="hapi-measure") as pool:
        decode((0, read(chosen[0])))  # connections and imports are not a sample's cost
        read_seconds, objects = _fastest(pool, read, chosen, clock)
        decode_seconds, found = _fastest(pool, decode, list(enumerate(objects)), clock)
        del objects
        faults = [fault for fault in found if fault is not None]
        if len(faults) == count and isinstance(faults[0], TransformError):
            raise faults[0]
        load_seconds, _ = _fastest(pool, both, list(enumerate(chosen)), clock)
    return LoadCost(
        load_seconds=load_seconds / count,
        read_seconds=read_seconds / count,
        decode_seconds=decode_seconds / count,
        input_bytes=manifest.total_bytes / len(manifest),
        failed=len(faults),
    )


def with_loading(tier: TierProfile, load: LoadCost) -> TierProfile:
    """The tier with what loading takes there."""
    return replace(
        tier,
        load_seconds=load.load_seconds,
        read_seconds=load.read_seconds,
        decode_seconds=load.decode_seconds,
        input_bytes=load.input_bytes,
    )


def spread(samples: int, count: int) -> list[int]:
    """At most `count` indices of a dataset, evenly spread over it."""
    count = min(samples, count)
    return [position * samples // count for position in range(count)]


def measure_decoding(
    objects: Sequence[bytes],
    transform: TransformSpec,
    *,
    workers: int | None = None,
    load: Load = load_sample,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Seconds per sample to decode and transform stored objects that are already here; 0 for none."""
    if not objects:
        return 0.0
    get_ready(load)
    with ThreadPoolExecutor(workers or processors(), thread_name_prefix="hapi-measure") as pool:
        _fault((0, objects[0]), transform, load)
        seconds, _ = _fastest(pool, lambda item: _fault(item, transform, load), list(enumerate(objects)), clock)
    return seconds / len(objects)


def load_examples(objects: Iterable[bytes], transform: TransformSpec, count: int = 4) -> torch.Tensor | None:
    """Inputs (n, ...) of the first `count` stored objects that are images of the usual size; None without any."""
    tensors: list[torch.Tensor] = []
    for index, data in enumerate(objects):
        with suppress(*_UNFIT):
            tensors.append(load_sample(data, transform, seed=0, epoch=0, index=index))
        if len(tensors) == count:
            break
    usual = [tensor for tensor in tensors if tensor.shape == tensors[0].shape]
    return torch.stack(usual) if usual else None


def _fault(item: tuple[int, bytes], transform: TransformSpec, load: Load) -> InputError | None:
    """Decodes and transforms (index, stored object); what is wrong with it, if anything is."""
    try:
        load(item[1], transform, seed=0, epoch=0, index=item[0])
    except _UNFIT as error:
        return error
    return None


def _fastest(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any], clock: Callable[[], float]
) -> tuple[float, list[Any]]:
    """Seconds of the fastest of a few passes, and the results of the last."""
    taken: list[float] = []
    results: list[Any] = []
    while len(taken) < PASSES and sum(taken) < ENOUGH_SECONDS:
        results = []  # of one pass at a time, for the memory
        started = clock()
        results = list(pool.map(work, items))
        taken.append(clock() - started)
    return min(taken), results
