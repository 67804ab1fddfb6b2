"""The published system's batch adaptation: one linear program over all requests that run.

    max sum b_i s_i   subject to   sum (b_i s_i + f_i) <= free,   25 <= b_i <= requested_i

with s_i the bytes of a sample (its input and all layer outputs up to the split) and f_i those of the weights.
Reconstructed from the public server logs, which print objectives that match it: for 2 requests of 1000 samples
5948.57 MB = 2 * 1000 * 2.974 MB; the smallest batch ever logged is 25. One constraint makes the solution a vertex: some
requests get all they ask for, one a part, the rest the minimum. When the minimum does not fit, requests are removed
from the program, the last first, and run alone with the minimum here (there, they wait for the next round).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from hapi.errors import MemoryBudgetError
from hapi.machine import free_bytes
from storage_server.extraction.engine import Prefix
from storage_server.extraction.sizing import Decision, Waiting

LEAST = 25


class LinearProgramPolicy:
    """Solved anew whenever requests come or go. Thread-safe."""

    def __init__(self, device: str = "cpu", free: Callable[[str], int] = free_bytes) -> None:
        self._device, self._free = device, free
        self._solved: tuple[object, dict[tuple[str, ...], int]] = (None, {})
        self._lock = threading.Lock()

    def decide(self, prefix: Prefix, waiting: Sequence[Waiting]) -> Decision:
        """See BatchPolicy."""
        state = tuple(sorted((request.tenant, request.prefix.key, request.samples) for request in waiting))
        with self._lock:
            if self._solved[0] != state:
                self._solved = (state, self._solve(waiting))
            return Decision(self._solved[1].get(prefix.key, LEAST), "memory")

    def failed(self, prefix: Prefix, samples: int) -> int:
        """The published server ends the request."""
        raise MemoryBudgetError(f"{prefix.what}: a batch of {samples}, as the linear program had it, does not fit.")

    def succeeded(self, prefix: Prefix, samples: int, seconds: float) -> None:
        """Nothing is learned."""

    def _solve(self, waiting: Sequence[Waiting]) -> dict[tuple[str, ...], int]:
        """The batch for each prefix: what its first request gets."""
        requests, free = list(waiting), self._free(self._device)
        while requests:
            sizes = [sample_bytes(request.prefix) for request in requests]
            weights = [request.prefix.memory.weight_bytes for request in requests]
            batches = solve(sizes, weights, [request.samples for request in requests], free)
            if batches is not None:
                found: dict[tuple[str, ...], int] = {}
                for request, batch in zip(requests, batches, strict=True):
                    found.setdefault(request.prefix.key, batch)
                return found
            requests.pop()
        return {}


def solve(sizes: Sequence[int], weights: Sequence[int], requested: Sequence[int], free: int) -> list[int] | None:
    """The batches, None if not even the least ones fit. All in bytes and samples."""
    from scipy.optimize import linprog

    scale = np.asarray(sizes, float) / 1e6
    left = (free - sum(weights)) / 1e6
    bounds = [(min(LEAST, most), most) for most in requested]
    answer = linprog(-scale, A_ub=[scale], b_ub=[left], bounds=bounds, method="highs")
    return [int(batch + 1e-6) for batch in answer.x] if answer.success else None


def sample_bytes(prefix: Prefix) -> int:
    """Bytes of one sample in the published estimate: input and all outputs, as if none were ever freed."""
    program = prefix._program
    specs = program.graph.specs
    owned = [specs[name] for node in program.nodes for name in node.outputs if specs[name].base == name]
    return prefix.input.bytes + sum(spec.bytes(1) for spec in owned)
