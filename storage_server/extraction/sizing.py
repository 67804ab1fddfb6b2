"""How many samples go through a prefix at once: the knee of its throughput, within what memory and shares allow."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hapi.wire.protocol import BatchReason
from storage_server.extraction.engine import Prefix
from storage_server.memory.budget import MemoryBudget
from storage_server.scheduling.knee import Curve, power_of_two
from storage_server.scheduling.remembered import Remembered

log = logging.getLogger(__name__)

BATCHES_AHEAD = 3
"""Batches of samples that a request has on their way: one on the device, one that waits, one being filled."""
LEAST_AHEAD, LEAST_AHEAD_OF_MANY = 2, 1
"""Of which there is room at the least, before a batch is made smaller: one on the device and one that fills; where at
least MANY prefixes take turns, one that fills while the others' run."""
MANY = 3
RECOVER_AFTER = 32
"""Good batches after running out of memory before a size twice as large is tried again; twice as many each time."""
FEW = 4
"""Who wants at most this part (a quarter) of a batch gets a small one of its own."""
KNOWN = 1024
"""Prefixes that are remembered."""
MOST_DIGITS = 9
"""Of a batch size that was remembered."""


@dataclass(frozen=True)
class Decision:
    """The samples of a whole batch, and what decided it."""

    samples: int
    reason: BatchReason


@dataclass(frozen=True)
class Waiting:
    """One request that wants samples of a prefix, as far as batch sizes are concerned.

    Attributes:
        samples: all that it asks for.
        sample_bytes: what one takes between reading and sending, in the mean.
        share_bytes: what the request may have there at once.
    """

    tenant: str
    prefix: Prefix
    samples: int
    sample_bytes: int
    share_bytes: int

    @property
    def samples_ahead(self) -> int:
        """Of its samples, so many may be there at once: one always."""
        return max(1, self.share_bytes // self.sample_bytes)

    @property
    def fits_whole(self) -> bool:
        """Whether all of its samples may be there at once."""
        return self.samples_ahead >= self.samples


class BatchPolicy(Protocol):
    """Decides batch sizes, and is told what came of them. Thread-safe; `decide` is asked for every batch."""

    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        """The whole batch for `prefix`, while `waiting` are all requests that run, of every prefix."""
        ...

    def failed(self, prefix: Prefix, samples: int) -> int:
        """Memory ran out with so many samples, at least 2; answers with how many to go on."""
        ...

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        """A batch was computed."""
        ...


@dataclass
class _Ceiling:
    """What running out of memory taught, and how far the way back up is."""

    samples: int
    patience: int = RECOVER_AFTER
    good: int = 0


class KneePolicy:
    """The smallest batch that is nearly as fast as the fastest, as measured on this device, no larger than fits."""

    def __init__(self, budget: MemoryBudget, max_batch: int, remembered: Remembered | None = None) -> None:
        self._budget = budget
        self._max_batch = max_batch
        self._remembered = remembered or Remembered()
        self._curves: OrderedDict[str, Curve] = OrderedDict()
        self._ceilings: OrderedDict[str, _Ceiling] = OrderedDict()
        self._lock = threading.Lock()

    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        """See BatchPolicy. A cap is rounded down to a power of two: few shapes suit compiled engines."""
        caps: dict[BatchReason, int] = {
            "limit": self._max_batch,
            "memory": prefix.memory.largest_batch(self._budget.batch_bytes() + prefix.memory.weight_bytes),
            "share": _shared(prefix, waiting) or self._max_batch,
        }
        with self._lock:
            ceiling = self._ceilings.get(curve_name(prefix))
            if ceiling is not None:
                caps["recovering"] = ceiling.samples
            cause = min(caps, key=lambda reason: caps[reason])
            curve = self._curve(prefix)
            size, is_trial, is_capped = curve.target(caps[cause])
            if few_wanted(prefix, waiting, size):
                curve.hush()
                size, is_trial, is_capped = curve.target(caps[cause])
        return Decision(size, cause if is_capped else "exploring" if is_trial else "knee")

    def failed(self, prefix: Prefix, samples: int) -> int:
        """See BatchPolicy: halves, and remembers it."""
        with self._lock:
            name = curve_name(prefix)
            known = self._ceilings.pop(name, None)
            half = power_of_two(max(1, samples // 2))
            ceiling = self._ceilings[name] = known or _Ceiling(half)
            if known is not None:
                known.samples, known.good, known.patience = min(half, known.samples), 0, 2 * known.patience
            while len(self._ceilings) > KNOWN:
                self._ceilings.popitem(last=False)
            return ceiling.samples

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        """See BatchPolicy: learns the throughput, and recovers by a doubling after many good batches."""
        with self._lock:
            name, curve = curve_name(prefix), self._curve(prefix)
            before = curve.target(self._max_batch)
            curve.record(samples, seconds)
            if curve.target(self._max_batch) != before:
                self._remembered.put(name, {str(size): value for size, value in curve.best.items()})
            ceiling = self._ceilings.get(name)
            if ceiling is None or samples < ceiling.samples:
                return
            ceiling.good += 1
            if ceiling.good >= ceiling.patience:
                ceiling.samples, ceiling.good = 2 * ceiling.samples, 0
                if ceiling.samples > self._max_batch:
                    del self._ceilings[name]

    def _curve(self, prefix: Prefix) -> Curve:
        name = curve_name(prefix)
        curve = self._curves.get(name)
        if curve is None:
            curve = self._curves[name] = Curve(seconds_by_size(self._remembered.get(name)))
            if len(self._curves) > KNOWN:
                self._curves.popitem(last=False)
        self._curves.move_to_end(name)
        return curve


def _shared(prefix: Prefix, waiting: Sequence[Waiting]) -> int | None:
    """The batch of which all requests for this prefix together have enough on their way, by the queues' bytes.

    None if these do not limit it: every request may have all of its samples on their way.
    """
    mine = [request for request in waiting if request.prefix.key == prefix.key]
    if all(request.fits_whole for request in mine):
        return None
    ahead = (BATCHES_AHEAD * one.samples if one.fits_whole else one.samples_ahead for one in mine)
    is_one_of_many = len({request.prefix.key for request in waiting}) >= MANY
    return max(1, sum(ahead) // (LEAST_AHEAD_OF_MANY if is_one_of_many else LEAST_AHEAD))


def few_wanted(prefix: Prefix, requests: Sequence[Waiting], size: int) -> dict[str, int]:
    """Tenants who want few samples of a prefix, and how many, while others want more; `size` is that of a batch."""
    wanted: Counter[str] = Counter()
    for request in requests:
        if request.prefix.key == prefix.key:
            wanted[request.tenant] += request.samples
    few = {tenant: samples for tenant, samples in wanted.items() if samples <= max(1, size // FEW) < size}
    return few if len(few) < len(wanted) else {}


def curve_name(prefix: Prefix) -> str:
    """Under which its seconds per sample by batch size are remembered: for the engine that runs it now."""
    return "/".join((*prefix.key, prefix.device, prefix.engine))


def seconds_by_size(value: object) -> dict[int, float]:
    """Seconds per sample by size from a file that anybody may have edited."""
    if not isinstance(value, dict):
        return {}
    return {
        int(size): float(seconds)
        for size, seconds in value.items()
        if size.isdecimal()
        and len(size) <= MOST_DIGITS
        and isinstance(seconds, int | float)
        and 0 < seconds < math.inf
        and power_of_two(int(size)) == int(size)
    }
