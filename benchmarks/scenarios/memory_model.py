"""`hapi bench memory-model`: the memory of a prefix as predicted from shapes, beside what a run of it really takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench
from benchmarks.bench.table import MODEL, SYSTEM, Column, times
from hapi.units import format_bytes

if TYPE_CHECKING:
    from hapi.model import Graph, Program

MODELS = (
    "torchvision:alexnet",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11",
    "torchvision:vgg19",
    "torchvision:densenet121",
    "torchvision:vit_b_16",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:squeezenet1_1",
    "torchvision:swin_t",
    "torchvision:convnext_tiny",
    "torchvision:inception_v3",
)
FITTED, BATCHES = (2, 8), (4, 12)
"""Batches at which the workspace is measured, and others for which it is predicted; libraries take 1 for special."""
FITTED_ON_CUDA, BATCHES_ON_CUDA = (2, 4, 8), (6, 12)
"""The same where libraries take another algorithm for each size."""
COLUMNS = (
    MODEL,
    SYSTEM,
    Column("cut", "cut", is_text=True),
    Column("batch", "batch"),
    Column("live_bytes", "tensors", format_bytes),
    Column("predicted_bytes", "predicted", format_bytes),
    Column("measured_bytes", "measured", format_bytes),
    Column("ratio", "predicted/measured", times),
    Column("resident_bytes", "resident", format_bytes),
)
ALLOWED = 0.15


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("memory-model")(memory_model)


def memory_model(
    model: options.Models = None,
    device: options.Device = "cpu",
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Peak bytes of a batch without weights, at an early, a middle and the last cut, for two batches.

    Predicted for batches of 4 and 12 (6 and 12 on CUDA): tensors alive by liveness, and a workspace measured with
    batches of 2 and 8 (2, 4 and 8). Measured: the allocator's peak. Resident: what the process grew by, the allocator's
    holes included (CPU). A row fails beyond 15 %.
    """
    with Bench("memory-model", as_json=as_json, report=report, columns=COLUMNS) as bench:
        import torch

        torch.manual_seed(0)
        for spec in model or (MODELS[1:2] if quick else MODELS):
            keys = {"system": "eager", "model": spec.removeprefix("torchvision:"), "precision": "float32"}
            with bench.step(**keys):
                graph = captured(spec)
                cuts = graph.cuts[1:]
                for cut in dict.fromkeys((cuts[len(cuts) // 4], cuts[len(cuts) // 2], cuts[-1])):
                    with bench.step(**keys, cut=cut.name):
                        program, _ = graph.split(cut)
                        for batch, found in measured(program.to(device), device):
                            _judge(bench, keys, cut.name, batch, found)


def _judge(bench: Bench, keys: dict[str, str], cut: str, batch: int, found: dict[str, float]) -> None:
    with bench.trial(**keys, cut=cut) as trial:
        off = abs(found["ratio"] - 1) > ALLOWED
        note = f"{cut}, batch {batch}: {found['ratio']:.2f} of what was measured" if off else ""
        trial.measured(batch=batch, failed=off, note=note, **found)


def captured(spec: str) -> Graph:
    """A backbone with random weights."""
    from hapi.model import capture
    from hapi.model.zoo import load_model

    model = load_model(spec, "none")
    return capture(model.backbone, model.example, name=spec)


def measured(program: Program, device: str) -> list[tuple[int, dict[str, float]]]:
    """Per batch, bytes predicted and measured."""
    import torch

    from profiler.memory import Workspace, measure_peak, prefix_memory, spec_input
    from profiler.peaks import peak_meter

    is_cuda = program.device.type == "cuda"
    model = prefix_memory(program)
    model = model.with_workspace(Workspace.fit(program, device, FITTED_ON_CUDA if is_cuda else FITTED))
    rows = []
    for batch in BATCHES_ON_CUDA if is_cuda else BATCHES:
        meter = peak_meter(device)
        inputs = [spec_input(spec.shape, spec.dtype, batch, device) for spec in program.inputs]
        with torch.inference_mode():
            meter.start()
            program(*inputs)
            grown = meter.stop()
        peak = measure_peak(program, batch, device)
        predicted = model.predicted(batch) - model.weight_bytes
        found = {
            "live_bytes": model.live_bytes(batch),
            "predicted_bytes": predicted,
            "measured_bytes": peak,
            "ratio": predicted / peak,
        }
        if grown is not None:
            found["resident_bytes"] = grown + sum(tensor.nbytes for tensor in inputs)
        rows.append((batch, found))
    return rows
