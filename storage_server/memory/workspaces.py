"""What prefixes take beyond the tensors of their graphs, learned from the batches that the server runs anyway.

Before a prefix has run, a cautious factor on the tensors alive stands in for it. The first whole batch (a power of two)
of each size that is larger than any before is measured, on the device's thread, while it does its work: nothing runs
for measuring's sake, and a prefix that barely fits is not killed by its own measurement. A measurement has the batch
touch all of its memory anew, which doubles its time: batches of sizes between, of which there would be many, are left
to the caution. What was learned is remembered per model, cut, device, engine and torch version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from hapi.model import TensorSpec
from hapi.model.pauses import undisturbed
from hapi.units import format_bytes
from profiler.memory import MemoryModel, Workspace
from profiler.peaks import PeakMeter, peak_meter
from storage_server.memory.outofmemory import release_kept
from storage_server.memory.reserve import Reserve
from storage_server.memory.shortage import SHORTAGE
from storage_server.scheduling.knee import power_of_two

log = logging.getLogger(__name__)

UNKNOWN_CPU, UNKNOWN_CUDA = 1.5, 1.0
"""Workspace per byte of tensors alive, where nothing was measured. CPU, eager, 14 torchvision networks: 0.0 to 1.6."""


class Measurable(Protocol):
    """What is asked of a prefix; `memory` is renewed when something was learned."""

    key: tuple[str, ...]

    @property
    def engine(self) -> str: ...

    input: TensorSpec
    memory: MemoryModel


class Learned(Protocol):
    """JSON values by name."""

    def get(self, name: str) -> Any: ...

    def put(self, name: str, value: Any) -> None: ...


class Forgetful:
    """Remembers for as long as the process lives."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        self._values[name] = value


class Workspaces:
    """Memory models of prefixes, with all that is known of their workspace on one device. Thread-safe."""

    def __init__(
        self,
        device: str,
        learned: Learned | None = None,
        meter: PeakMeter | None = None,
        is_short: Callable[[], bool] = lambda: False,
        room: Callable[[], int] = lambda: 0,
    ) -> None:
        """`is_short` says before each batch whether kept memory is to be released first.

        `room` tells what batches may take in all at the moment, weights apart.
        """
        self._device = device
        self._is_short, self._room = is_short, room
        self._unknown = UNKNOWN_CPU if device == "cpu" else UNKNOWN_CUDA
        self._learned: Learned = learned or Forgetful()
        self._meter = meter or peak_meter(device)
        self._lock = threading.Lock()
        self.reserve = Reserve() if device == "cpu" else None
        self.releases = 0
        """How often kept memory was released before a batch."""

    def measured(self, prefix: Measurable) -> MemoryModel:
        """The prefix's memory model; beyond the largest batch measured, the workspace grows as if unknown."""
        return prefix.memory.with_workspace(workspace_of(prefix.memory, self._peaks(prefix), self._unknown))

    def peak_bytes(self, prefix: Measurable) -> int | None:
        """The largest peak that was measured, weights included; None before the first."""
        peaks = self._peaks(prefix)
        return prefix.memory.weight_bytes + max(peaks.values()) if peaks else None

    def fit_together(self, *batches: tuple[Measurable, int]) -> bool:
        """Whether these batches, each of so many samples, may be in memory at once, as things are now."""
        return sum(one.memory.predicted(samples) - one.memory.weight_bytes for one, samples in batches) <= self._room()

    @contextmanager
    def observing(self, prefix: Measurable, samples: int) -> Iterator[None]:
        """Round one batch, on the device's thread: measures it if it tells of larger ones than are known. Errors teach
        nothing."""
        SHORTAGE.look()
        self._keep_room(prefix)
        if not tells_more(samples, max(self._peaks(prefix), default=0)):
            if self._is_short():
                release_kept(self._device)
                self.releases += 1
            yield
            return
        with undisturbed():
            self._meter.start()
            yield
            grown = self._meter.stop()
        if grown is not None:
            self._learn(prefix, samples, grown + samples * prefix.input.bytes)
            self._keep_room(prefix)

    def _keep_room(self, prefix: Measurable) -> None:
        """For a batch of one, whatever becomes of the heap."""
        if self.reserve is not None:
            self.reserve.keep(self._name(prefix), prefix.memory.predicted(1) - prefix.memory.weight_bytes)

    def _learn(self, prefix: Measurable, samples: int, peak: int) -> None:
        with self._lock:
            peaks = self._peaks(prefix) | {samples: peak}
            self._learned.put(self._name(prefix), {str(size): taken for size, taken in peaks.items()})
        prefix.memory = self.measured(prefix)
        log.debug(
            "%s: %d samples took %s, %s of it tensors",
            "/".join(prefix.key),
            samples,
            format_bytes(peak),
            format_bytes(prefix.memory.live_bytes(samples)),
        )

    def _peaks(self, prefix: Measurable) -> dict[int, int]:
        """Bytes at the peak, weights apart, by batch size; from a file that anybody may have edited."""
        said = self._learned.get(self._name(prefix))
        if not isinstance(said, dict):
            return {}
        return {
            int(size): taken
            for size, taken in said.items()
            if isinstance(size, str) and size.isdigit() and int(size) > 0 and isinstance(taken, int) and taken >= 0
        }

    def _name(self, prefix: Measurable) -> str:
        return "/".join(("memory", *prefix.key, self._device, prefix.engine, torch.__version__))


def tells_more(samples: int, known: int) -> bool:
    """Whether a batch is worth measuring where `known` is the largest that was: a larger whole one, or twice that."""
    return samples > known and (samples == power_of_two(samples) or samples >= 2 * known)


def workspace_of(model: MemoryModel, peaks: Mapping[int, int], unknown: float) -> Workspace:
    """The workspace that explains measured peaks (bytes by batch size), never less than any of them.

    Up to the largest batch measured it is a line above all measurements and through that of the largest; beyond, each
    further sample takes `unknown` times its tensors on top.
    """
    slope = int(unknown * model.live_per_sample_bytes)
    if not peaks:
        return Workspace.of((slope, 0))
    extra = {size: max(0, taken - model.live_bytes(size)) for size, taken in peaks.items()}
    largest = max(extra)
    below = [(extra[largest] - more) // (largest - size) for size, more in extra.items() if size < largest]
    flat = max(0, min(below, default=0))
    steep = max(slope, flat)
    height = max(extra.values())
    return Workspace.of((flat, height - flat * largest), (steep, height - steep * largest))
