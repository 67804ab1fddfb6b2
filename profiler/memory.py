"""Peak memory of a program: exactly from shapes and liveness, before anything runs; and measured, to check that.

The prediction counts tensors: weights, inputs, and every value from the node that makes it to the last that reads it,
views sharing the storage they show. What an operation allocates for itself while it runs (workspace, for example the
reordered copies that convolution libraries make) is not in a graph; `Workspace.fit` measures it on a device, as a
correction on top.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from hapi.model import Program

Line = tuple[int, int]
"""(per sample, fixed) bytes: affine in the batch."""


@dataclass(frozen=True)
class Workspace:
    """What a device needs beyond the tensors of the graph: the highest of lines in the batch, never negative."""

    lines: tuple[Line, ...] = ((0, 0),)

    @classmethod
    def of(cls, *lines: Line) -> Workspace:
        """The highest of (per sample, fixed) lines, zero included."""
        return cls(((0, 0), *(line for line in dict.fromkeys(lines) if line != (0, 0))))

    def bytes(self, batch: int) -> int:
        return max(slope * batch + fixed for slope, fixed in self.lines)

    @classmethod
    def fit(cls, program: Program, device: torch.device | str = "cpu", batches: Sequence[int] = (2, 8)) -> Workspace:
        """Measures a program at some batch sizes, ascending: the lowest line above all, never negative.

        It may fall: where the tensors alive elsewhere outgrow an operation's workspace, the peak moves there. Not on
        CUDA: there a library takes another algorithm, with more workspace or less, for one size and the next.
        """
        model = prefix_memory(program)
        extra = {batch: measure_peak(program, batch, device) - model.live_bytes(batch) for batch in batches}
        small, large = min(extra), max(extra)
        per_sample = -(-(extra[large] - extra[small]) // (large - small))
        if torch.device(device).type == "cuda":
            per_sample = max(0, per_sample)
        return cls.of((per_sample, max(more - per_sample * batch for batch, more in extra.items())))


@dataclass(frozen=True)
class MemoryModel:
    """Bytes that a program needs as a function of its batch.

    Attributes:
        weight_bytes: of the weights that it reads.
        lines: (per sample, fixed) bytes of tensors alive at the nodes that can be the peak at some batch size.
        workspace: a measured correction, zero unless fitted.
    """

    weight_bytes: int
    lines: tuple[Line, ...]
    workspace: Workspace = Workspace()

    @property
    def live_per_sample_bytes(self) -> int:
        """What one more sample of a large batch costs in tensors."""
        return max(slope for slope, _ in self.lines)

    @property
    def per_sample_bytes(self) -> int:
        """What one more sample of a large batch costs."""
        return self.live_per_sample_bytes + max(slope for slope, _ in self.workspace.lines)

    def live_bytes(self, batch: int) -> int:
        """Tensors alive at the peak, inputs and outputs counted, weights and workspace not."""
        return max(slope * batch + fixed for slope, fixed in self.lines)

    def predicted(self, batch: int) -> int:
        """Everything: weights, tensors and workspace."""
        return self.weight_bytes + self.live_bytes(batch) + self.workspace.bytes(batch)

    def largest_batch(self, budget_bytes: int) -> int:
        """The most samples that fit in a budget; 0 if not even one does."""
        left = budget_bytes - self.weight_bytes
        both = product(self.lines, self.workspace.lines)
        return max(0, min((left - fixed - more) // max(1, slope + extra) for (slope, fixed), (extra, more) in both))

    def with_workspace(self, workspace: Workspace) -> MemoryModel:
        return replace(self, workspace=workspace)


def prefix_memory(program: Program) -> MemoryModel:
    """The memory model of a program (a prefix, a suffix or a whole graph); nothing is run or allocated."""
    one, two = _timeline(program, 1), _timeline(program, 2)
    lines = {(second - first, 2 * first - second) for first, second in zip(one, two, strict=True)}
    return MemoryModel(program.weight_bytes, _envelope(lines))


def measure_peak(program: Program, batch: int, device: torch.device | str = "cpu") -> int:
    """Bytes of tensors and workspace at the peak of one real run, inputs counted and weights not.

    On CUDA by the caching allocator's own counter; on the CPU by the allocations that PyTorch's profiler sees (memory
    that a library takes behind the allocator's back is in neither). Takes about twice the time of a run.
    """
    program = program.to(device)
    inputs = [spec_input(spec.shape, spec.dtype, batch, program.device) for spec in program.inputs]
    held = sum(tensor.nbytes for tensor in inputs)
    with torch.inference_mode():
        program(*inputs)  # one-time allocations (reordered weights, library handles) are not the batch's
        if program.device.type == "cuda":
            torch.cuda.synchronize(program.device)
            torch.cuda.reset_peak_memory_stats(program.device)
            before = torch.cuda.memory_allocated(program.device)
            program(*inputs)
            torch.cuda.synchronize(program.device)
            return held + torch.cuda.max_memory_allocated(program.device) - before
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            output = program(*inputs)
    del output
    return held + _peak_of(_allocations(record))


def spec_input(
    shape: Sequence[int], dtype: torch.dtype, batch: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A batch that any graph accepts: normal noise, or zeros and ones for integers and masks (token ids, flags)."""
    size = (batch, *shape)
    if dtype.is_floating_point:
        return torch.randn(size, device=device).to(dtype)
    return torch.ones(size, dtype=dtype, device=device)


def _timeline(program: Program, batch: int) -> Sequence[int]:
    return program.live_bytes(batch) or (program.peak_bytes(batch),)


def _envelope(lines: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The lines that are highest at some batch of at least 1."""
    kept: list[tuple[int, int]] = []
    for slope, fixed in sorted(lines, reverse=True):
        if all(slope + fixed > other_slope + other_fixed for other_slope, other_fixed in kept):
            kept.append((slope, fixed))
    return tuple(kept)


def _allocations(record: torch.profiler.profile) -> list[tuple[float, int]]:
    """(time, bytes) of every allocation and release, in order, from the profiler's trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")


def _peak_of(allocations: Iterable[tuple[float, int]]) -> int:
    total = peak = 0
    for _, size in allocations:
        total += size
        peak = max(peak, total)
    return peak
