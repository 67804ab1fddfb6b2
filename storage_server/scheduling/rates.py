"""How long work will take: predicted seconds per sample, of a prefix on this device and of threads' work."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hapi.model import Program
    from storage_server.extraction.engine import Prefix

SMOOTHING = 0.2
"""Part of a new measurement in the running mean."""
UNKNOWN_SECONDS_PER_FLOP = 2e-11
"""Of a device that has computed nothing yet: 50 GFLOP/s, two cores of a server."""
LEAST_SECONDS = 1e-6
KNOWN = 1024


class Mean:
    """An exponentially smoothed mean; the first values count in full. Not thread-safe, and harmless if raced."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.count = 0

    def add(self, value: float, weight: int = 1) -> None:
        """`weight` values at once."""
        self.count += weight
        part = max(weight / self.count, 1 - (1 - SMOOTHING) ** weight)
        self.value += part * (value - self.value)


class Rates:
    """Seconds per sample by prefix: what was measured; before that, its FLOPs at this device's speed. Thread-safe."""

    def __init__(self) -> None:
        self._measured: OrderedDict[tuple[str, ...], Mean] = OrderedDict()
        self._flops: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._per_flop = Mean(UNKNOWN_SECONDS_PER_FLOP)
        self._lock = threading.Lock()

    def introduce(self, prefix: Prefix) -> None:
        """Counts the work of a prefix, so that its first batch can be predicted."""
        if prefix.key not in self._flops:
            flops = prefix.flops
            with self._lock:
                self._flops[prefix.key] = flops
                if len(self._flops) > KNOWN:
                    self._flops.popitem(last=False)

    def seconds(self, key: tuple[str, ...]) -> float:
        """Predicted seconds of one sample through the prefix with this key."""
        with self._lock:
            measured = self._measured.get(key)
            if measured is not None:
                return max(LEAST_SECONDS, measured.value)
            flops = self._flops.get(key)
            if flops is not None:
                return max(LEAST_SECONDS, flops * self._per_flop.value)
            known = [mean.value for mean in self._measured.values()]
            return max(LEAST_SECONDS, math.fsum(known) / len(known)) if known else 0.01

    def learned(self, key: tuple[str, ...], samples: int, seconds: float) -> None:
        """So many samples took so long on the device."""
        with self._lock:
            mean = self._measured.setdefault(key, Mean())
            mean.add(seconds / samples)
            self._measured.move_to_end(key)
            if len(self._measured) > KNOWN:
                self._measured.popitem(last=False)
            if flops := self._flops.get(key):
                self._per_flop.add(seconds / samples / flops)


def approximate_flops(program: Program) -> float:
    """FLOPs per sample of the operations with weights (a multiply-add counts as two), from shapes alone.

    Each value of a convolution or a linear layer takes as many multiply-adds as one row of its weights is long. The
    products of attention are left out: this is a first guess, which the first batch replaces.
    """
    total = 0.0
    for node in program.nodes:
        rows = [program.graph.weights[name] for name in node.weights()]
        longest = max((weight.numel() / weight.shape[0] for weight in rows if weight.dim() > 1), default=0.0)
        total += 2 * longest * max((math.prod(spec.shape(1)) for spec in program.specs(node)), default=0)
    return total
