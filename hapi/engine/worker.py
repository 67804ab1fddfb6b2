"""The process that compiles one program, so that the serving process neither waits nor shares its lock with it.

Reads a job as JSON from standard input, writes the outcome as JSON to standard output. It trusts its caller only as
far as the job goes: the graph comes from an archive, which cannot execute.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hapi.allocator import keep_freed_memory
from hapi.engine.agreement import allowed, compare, gain, given, probe
from hapi.engine.kernels.attention import FuseAttention
from hapi.engine.kernels.convolution import FuseConvolutions
from hapi.engine.kernels.processor import has_kernels
from hapi.engine.kernels.shims import shims
from hapi.engine.library import Library
from hapi.engine.module import LARGEST_BATCH, as_module
from hapi.engine.packing import PackWeights
from hapi.engine.passes import InOrder
from hapi.engine.precision import Precision, exact_sums, rewritten
from hapi.model import Program, load_archive

EXAMPLE_BATCH = 8


@dataclass(frozen=True)
class Job:
    """What to compile, and where the result is to lie."""

    archive: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    device: str
    precision: Precision
    threads: int
    target: str


def work(job: Job) -> dict[str, Any]:
    """Compiles, tries and compares; moves the library to its target if it agrees. Answers the facts."""
    torch.set_num_threads(job.threads)
    exact_sums()
    exact = Program(load_archive(job.archive), "program", job.inputs, job.outputs).to(job.device)
    with tempfile.TemporaryDirectory(dir=Path(job.archive).parent) as folder:  # which is gone even if this is killed
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # its own default is a folder of a known name below /tmp
        replaced = rewritten(exact, job.precision)
        # Freezing folds norms by itself, and better without ours; bf16 weights are rounded after folding.
        source = exact if job.precision == "float32" else replaced
        limit = allowed(exact, replaced, job.precision)
        started = time.perf_counter()
        made = best_of(exact, source, limit, Path(folder))
        facts: dict[str, Any] = {"seconds": time.perf_counter() - started, "nodes": len(exact.nodes), "limit": limit}
        facts |= {"error": made.error, "remark": made.remark, "gain": gain(replaced, made.library)}
        if made.error <= limit:
            os.chmod(made.path, 0o600)
            os.replace(made.path, job.target)
    return facts


class Made(NamedTuple):
    """A library, by how much it is off, and what there is to say of how it was made."""

    path: Path
    library: Library
    error: float
    remark: str = ""


def best_of(exact: Program, source: Program, limit: float, folder: Path) -> Made:
    """The program compiled with kernels of ours, if it can be and is not off by more than the limit; else without."""
    if not with_kernels(source):
        return _made(exact, source, folder, False)
    try:
        made = _made(exact, source, folder, True)
    except Exception as error:  # of a compiler that we never saw
        return _made(exact, source, folder, False)._replace(remark=f"with them it cannot be compiled ({error})"[:300])
    if made.error <= limit:
        return made
    remark = f"with them it is off by {made.error:.1e}, over the limit of {limit:.0e}"
    return _made(exact, source, folder, False)._replace(remark=remark)


def with_kernels(program: Program) -> bool:
    """Whether there are kernels of ours for the machine that the program is for."""
    return program.device.type == "cpu" and has_kernels(torch.float32)


def _made(exact: Program, source: Program, folder: Path, has_ours: bool) -> Made:
    own = folder / ("kernels" if has_ours else "plain")
    own.mkdir()
    path = compile_to(source, own / "program.so", has_ours=has_ours)
    library = Library(path, exact.device)
    return Made(path, library, compare(exact, library, source))


def compile_to(program: Program, target: Path, *, has_ours: bool) -> Path:
    """The shared library of a program with a free batch size.

    Freezing folds norms into convolutions and lays weights out once as the kernels want them, those of convolutions
    with our help (see `packing`). So a free batch costs nothing measurable beside a fixed one, and nothing is ever
    compiled again in service. `has_ours`: with kernels of ours for what they are faster at, see `kernels`.
    """
    import torch._inductor as inductor

    module = as_module(program)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH if program.device.type == "cuda" else None)
    inputs = tuple(given(probe(program, EXAMPLE_BATCH), program))
    options: dict[str, Any] = {
        "freezing": True,
        "aot_inductor.output_path": str(target),
        "aot_inductor.precompile_headers": False,  # they lie in a folder of a known name below /tmp, whatever is set
    }
    if program.device.type == "cpu":
        options["post_grad_custom_pre_pass"] = PackWeights(EXAMPLE_BATCH)
    if has_ours:
        options["post_grad_custom_pre_pass"] = InOrder(FuseConvolutions(), PackWeights(EXAMPLE_BATCH))
        options["post_grad_custom_post_pass"] = FuseAttention()
        options["aot_inductor.custom_ops_to_c_shims"] = shims(torch.get_num_threads())
    if program.device.type == "cuda":
        options["aot_inductor.embed_kernel_binary"] = True  # else they are files beside it, and only it is kept
    with torch.no_grad():  # freezing is for inference only
        exported = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        made = inductor.aot_compile(exported.module(), inputs, options=options)
    if any(_has_nodes(path) for path in target.parent.glob("*.json")):
        raise NotImplementedError("an operation of it cannot be called from compiled code")
    return Path(str(made))


def _has_nodes(path: Path) -> bool:
    """Whether the compiler left operations to an interpreter that a library of its own does not have."""
    said = json.loads(path.read_text())
    return isinstance(said, dict) and bool(said.get("nodes"))


def main() -> None:
    os.nice(19)  # who serves meanwhile comes first
    keep_freed_memory()  # as those do whom the gain is for: page faults would make eager look slower than it is there
    said = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers talk
    try:
        job = Job(**said | {"inputs": tuple(said["inputs"]), "outputs": tuple(said["outputs"])})
        outcome = work(job)
    except Exception as error:  # whatever a compiler stumbles over is the answer
        lines = str(error).strip().splitlines()
        outcome = {"failure": f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]}
    with answers:
        json.dump(outcome, answers)


if __name__ == "__main__":
    main()
