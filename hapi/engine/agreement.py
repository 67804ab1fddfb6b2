"""Whether a compiled program computes what eager float32 does, and how much faster, on inputs drawn for the purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hapi.engine.precision import TOLERANCE, Precision
from hapi.model import Program

PROBE_BATCH = 3
"""Neither 1, which compilers like to specialise on, nor a power of two."""
GAIN_BATCH = 8
"""Of the batches that are timed: past the steep part of a CPU's throughput."""
TURNS = 3

Run = Callable[..., Sequence[torch.Tensor]]


def probe(program: Program, batch: int = PROBE_BATCH) -> list[torch.Tensor]:
    """Inputs that a program accepts: the same normal noise each time, ones for integers and masks."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn((batch, *spec.shape), generator=generator, device="cpu").to(spec.dtype)
            if spec.dtype.is_floating_point
            else torch.ones((batch, *spec.shape), dtype=spec.dtype)
        ).to(program.device)
        for spec in program.inputs
    ]


def given(tensors: Sequence[torch.Tensor], program: Program) -> list[torch.Tensor]:
    """Tensors in the dtypes that a program takes, laid out as compiled code expects them: images channels last."""
    return [
        tensor.to(spec.dtype).contiguous(
            memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        )
        for tensor, spec in zip(tensors, program.inputs, strict=True)
    ]


def compare(exact: Program, candidate: Run, takes: Program, batch: int = PROBE_BATCH) -> float:
    """The largest difference of any output over that output's largest absolute value; infinite where it is not finite.

    `takes` is the program that the candidate was made from: its inputs may be of another dtype.
    """
    inputs = probe(exact, batch)
    with torch.inference_mode():
        return distance(outputs(exact(*inputs)), candidate(*given(inputs, takes)))


def allowed(exact: Program, replaced: Program, precision: Precision, batch: int = PROBE_BATCH) -> float:
    """Most that code which replaces an eager program of this precision may be off, see `compare`.

    In bf16 deep networks are off by more than the tolerance however they are run: then as much as what is replaced.
    """
    if precision == "float32":
        return TOLERANCE[precision]
    return max(TOLERANCE[precision], compare(exact, lambda *given: outputs(replaced(*given)), replaced, batch))


def distance(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Of two sets of tensors, see `compare`. Shapes must be equal, else it is infinite as well."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        one, other = one.double(), other.double()
        difference = (one - other).abs().max().item() / max(one.abs().max().item(), 1e-30)
        worst = max(worst, difference) if difference == difference else float("inf")
    return worst


def gain(program: Program, candidate: Run) -> float:
    """How many times faster the candidate is than the eager program it replaces: best of turns taken alternately."""
    inputs = given(probe(program, GAIN_BATCH), program)
    runs: tuple[Callable[..., object], Run] = (program, candidate)
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for turn in range(2 * TURNS):
            started = time.perf_counter()
            runs[turn % 2](*inputs)
            if program.device.type == "cuda":
                torch.cuda.synchronize(program.device)
            best[turn % 2] = min(best[turn % 2], time.perf_counter() - started)
    return best[0] / max(best[1], 1e-9)


def outputs(result: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a program gives, always as a tuple."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)
