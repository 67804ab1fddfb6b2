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
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from hapi.allocator import keep_freed_memory
from hapi.engine.agreement import allowed, compare, gain, given, probe
from hapi.engine.kernels.attention import FuseAttention
from hapi.engine.kernels.convolution import FuseConvolutions
from hapi.engine.kernels.shims import shims
from hapi.engine.library import Library
from hapi.engine.module import LARGEST_BATCH, as_module
from hapi.engine.packing import PackWeights
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
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=Path(job.archive).parent) as folder:  # which is gone even if this is killed
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # its own default is a folder of a known name below /tmp
        replaced = rewritten(exact, job.precision)
        # Freezing folds norms by itself, and better without ours; bf16 weights are rounded after folding.
        source = exact if job.precision == "float32" else replaced
        made = compile_to(source, Path(folder) / "program.so")
        seconds = time.perf_counter() - started
        library = Library(made, exact.device)
        error, limit = compare(exact, library, source), allowed(exact, replaced, job.precision)
        facts = {"seconds": seconds, "nodes": len(exact.nodes), "error": error, "limit": limit}
        facts["gain"] = gain(replaced, library)
        if error <= limit:
            os.chmod(made, 0o600)
            os.replace(made, job.target)
    return facts


def compile_to(program: Program, target: Path) -> Path:
    """The shared library of a program with a free batch size.

    Freezing folds norms into convolutions and lays weights out once as the kernels want them, those of convolutions
    with our help (see `packing`). So a free batch costs nothing measurable beside a fixed one, and nothing is ever
    compiled again in service.
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


class InOrder(CustomGraphPass):
    """Several passes as one."""

    def __init__(self, *passes: CustomGraphPass) -> None:
        self._passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        for each in self._passes:
            each(graph)

    def uuid(self) -> Any:
        return [each.uuid() for each in self._passes]


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
