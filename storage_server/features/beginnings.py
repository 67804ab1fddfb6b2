"""Where the way of a sample begins: at the stored object, or at kept features, of its cut or of a shallower one.

Whatever is predicted to take the fewest seconds is taken. Reading and decoding count by their threads, as everywhere
in the server; kept bytes by what reading such bytes took so far.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hapi.cache.tiers import Tier
from storage_server.extraction.engine import Prefix
from storage_server.extraction.loading import SampleLoader
from storage_server.features.starts import Start
from storage_server.scheduling.rates import Mean, Rates

Tensors = tuple[torch.Tensor, ...]

READ_SECONDS, DECODE_SECONDS = 0.005, 0.005
"""Of one stored object, before the first: a photograph of 100 kB on a disk or in a near bucket."""
SECONDS_PER_BYTE: dict[Tier, float] = {"memory": 1e-10, "disk": 2e-9, "bucket": 5e-8}
"""Of kept features, before the first are read: 10 GB/s, 500 MB/s, and 20 MB/s of one request to a near bucket."""
PASSED_OVER = 0.99
"""What is too slow is thought this much cheaper each time that it is not taken, so that it is tried again by and by."""


class Kept(Protocol):
    """Where finished rows are kept. Thread-safe. `in` and `where` may name what is then not there."""

    def get(self, key: bytes) -> Tensors | None: ...

    def fetch(self, key: bytes) -> Tensors | None: ...

    def put(self, key: bytes, tensors: Tensors) -> None: ...

    def where(self, key: bytes) -> Tier | None: ...

    def __contains__(self, key: bytes) -> bool: ...


@dataclass(frozen=True)
class Beginning:
    """Kept features to begin with: `part` leads on from them; None: they are what is asked for."""

    key: bytes
    tier: Tier
    part: Prefix | None
    expected: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    """Shapes and dtypes that the tensors must have: who writes into a bucket is not known."""

    def fits(self, tensors: Tensors) -> bool:
        """Whether these are such tensors."""
        return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors) == self.expected


class Beginnings:
    """Chooses and reads. Thread-safe; `read` may block on a disk or a network, `choose` asks neither."""

    def __init__(self, kept: Kept, rates: Rates, loader: SampleLoader) -> None:
        self._kept, self._rates, self._loader = kept, rates, loader
        self._object_seconds = Mean(READ_SECONDS)
        self._per_byte = {tier: Mean(seconds) for tier, seconds in SECONDS_PER_BYTE.items()}
        self._lock = threading.Lock()

    def choose(self, index: int, prefix: Prefix, key: bytes, starts: Sequence[Start]) -> Beginning | None:
        """What takes the fewest seconds; None: the stored object. `key` is of the sample at the cut that is asked for.

        What lies in memory or on disk under that key has been looked for before.
        """
        choices: list[tuple[float, Beginning]] = []
        if self._kept.where(key) == "bucket":
            seconds = self._reading("bucket", prefix.cut.bytes_per_sample)
            expected = tuple(zip(prefix.cut.shapes, prefix.cut.dtypes, strict=True))
            choices.append((seconds, Beginning(key, "bucket", None, expected)))
        for start in starts:
            start_key = start.keys.of(index)
            tier = self._kept.where(start_key)
            if tier is not None:
                part = start.part
                seconds = self._reading(tier, part.input.bytes) + self._rates.seconds(part.key)
                expected = ((part.input.shape, part.input.dtype),)
                choices.append((seconds, Beginning(start_key, tier, part, expected)))
        if not choices:
            return None
        seconds, best = min(choices, key=lambda choice: choice[0])
        if seconds < self._directly(prefix):
            return best
        for _, choice in choices:
            self._per_byte[choice.tier].value *= PASSED_OVER
        return None

    def read(self, beginning: Beginning) -> Tensors | None:
        """The features; None if they are not there after all, or not what they should be."""
        started = time.perf_counter()
        tensors = self._kept.fetch(beginning.key)
        seconds = time.perf_counter() - started
        if tensors is None or not beginning.fits(tensors):
            return None
        with self._lock:
            self._per_byte[beginning.tier].add(seconds / max(1, sum(tensor.nbytes for tensor in tensors)))
        return tensors

    def read_object(self, seconds: float) -> None:
        """A stored object took so long."""
        with self._lock:
            self._object_seconds.add(seconds)

    def _directly(self, prefix: Prefix) -> float:
        decoders = self._loader.decoders
        decoding = decoders.seconds.value if decoders.seconds.count else DECODE_SECONDS
        reading = self._object_seconds.value / self._loader.read_threads
        return reading + decoding / decoders.count + self._rates.seconds(prefix.key)

    def _reading(self, tier: Tier, count: int) -> float:
        return count * self._per_byte[tier].value / self._loader.read_threads
