"""`hapi bench engine`: images per second of whole networks on one core, beside PyTorch's own ways and OpenVINO."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from benchmarks.bench import options
from benchmarks.bench.bars import bars
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import LIMIT, MODEL, SECONDS, SYSTEM, Column, number, times
from hapi.errors import HapiError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.bench.rows import Row
    from hapi.engine import Compiler, Precision
    from hapi.model import Graph

COLUMNS = (
    MODEL,
    Column("precision", "precision", is_text=True),
    SYSTEM,
    Column("images_per_s", "images/s", number),
    Column("ratio_to_eager", "of eager", times),
    Column("ratio_to_plain-eager", "of plain", times),
    SECONDS,
    LIMIT,
    Column("most_of_eager", "most of eager", times),
    Column("largest_error", "error", lambda value: f"{value:.1e}"),
    Column("compile_seconds", "compiling", number),
)
PLOTS = (
    Plot(
        "rates",
        "Images per second",
        bars("images_per_s", "images per second", number, names=("precision", "system"), own_scales=True),
        "The whole backbone, in batches that are in memory already.",
    ),
)
MODELS = ["alexnet", "resnet18", "resnet50", "mobilenet_v2", "densenet121", "vit_b_16"]
QUICK_MODELS = ["resnet18"]
EAGER, PLAIN = "eager", "plain-eager"
SYSTEMS = (PLAIN, EAGER, "folded", "compiled", "torch.compile", "openvino")
BATCH = 16
PEAK_SIZE = 2048
Run = Callable[["Tensor"], "Tensor"]


class PeerError(HapiError):
    """A system to compare with is not installed here."""

    kind = "no-peer"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("engine")(engine)


def engine(
    model: options.Models = None,
    batch_size: options.BatchSize = BATCH,
    repeats: options.Repeats = 3,
    threads: options.Threads = 1,
    system: options.Systems = None,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Images per second from input tensors to features; nothing is read or decoded.

    `plain-eager` is the module as torchvision gives it, in a process of its own that leaves the C library's allocator
    as it is, as a plain script would; `eager` the same in this process, which keeps freed memory; `folded` our engine
    before anything is compiled, `compiled` our engine afterwards, `torch.compile` PyTorch's compiler (with freezing) on
    the module, `openvino` its CPU plugin on the same graph. Ratios are to the first two, in float32, errors to eager
    (the largest, over the largest feature).
    `limit` is the network's multiplications at the rate of this machine's best large matrix product or convolution, and
    `most of eager` how many times as fast as eager that would be: no engine gets further here without fewer of them.
    Where compiled code is no faster than what it would replace, HAPI does not run it: `compiled` is then `folded`, and
    its note says so.
    """
    from hapi.allocator import keep_freed_memory

    options.check_known("system", system, SYSTEMS)
    keep_freed_memory()
    with (
        Bench("engine", as_json=as_json, report=report, columns=COLUMNS, compare_with=[EAGER, PLAIN],
              same=("scenario", "model"), plots=PLOTS, finish=_most) as bench,
        tempfile.TemporaryDirectory(prefix="hapi-bench-engine-") as folder,
    ):  # fmt: skip
        import torch

        from benchmarks.baselines.eager import seconds_of
        from hapi.engine import Compiler, Shelf, has_bf16
        from hapi.model import capture
        from profiler.flops import count_flops

        torch.set_num_threads(threads or 1)
        compiler = Compiler(Shelf(Path(folder) / "shelf"))
        precisions: list[Precision] = ["float32", "bf16"] if has_bf16("cpu") else ["float32"]
        peaks = {precision: peak(precision) for precision in precisions}
        for name in model or (QUICK_MODELS if quick else MODELS):
            short = name.removeprefix("torchvision:")
            with bench.step(system="compiled", model=short, precision="float32"):
                network, images = load(name, batch_size)
                graph = capture(network, images[:2], name=name)
                with torch.inference_mode():
                    expected = network(images)
                flops = sum(count_flops(graph.whole).values()) * batch_size
                with bench.trial(system=PLAIN, model=short, precision="float32") as trial:
                    seconds = seconds_of(name, batch_size, repeats, torch.get_num_threads())
                    trial.measured(samples=batch_size, seconds=seconds, images_per_s=batch_size / seconds,
                                   limit_seconds=flops / peaks["float32"])  # fmt: skip
                for precision in precisions:
                    for called, build in systems(network, graph, images, precision, compiler):
                        if system and called not in system and called not in (EAGER, PLAIN):
                            continue
                        if not system and called == "openvino" and find_spec("openvino") is None:
                            bench.remark("not compared, as it is not installed: openvino (pip install openvino)")
                            continue
                        with bench.trial(system=called, model=short, precision=precision) as trial:
                            started = time.perf_counter()
                            run, note = build()
                            prepared = time.perf_counter() - started
                            seconds, found = best_of(repeats, run, images)
                            trial.measured(
                                samples=batch_size,
                                seconds=seconds,
                                images_per_s=batch_size / seconds,
                                limit_seconds=flops / peaks[precision],
                                largest_error=error_of(expected, found),
                                compile_seconds=prepared,
                                note=note,
                            )
        compiler.close()


def _most(rows: list[Row]) -> list[Row]:
    """With eager's seconds over each row's limit."""
    eager = {row.model: row.seconds for row in rows if row.system == EAGER and row.seconds}
    return [
        row.filled(most_of_eager=theirs / row.limit_seconds)
        if row.limit_seconds and (theirs := eager.get(row.model))
        else row
        for row in rows
    ]


def load(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A backbone with random weights whose norms have statistics, and normal noise for pictures."""
    import torch

    from hapi.model import load_model

    torch.manual_seed(0)
    loaded = load_model(name if ":" in name else f"torchvision:{name}", "none")
    for part in loaded.backbone.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return loaded.backbone.eval(), torch.randn(batch, *loaded.example.shape[1:])


def systems(
    network: nn.Module, graph: Graph, images: Tensor, precision: Precision, compiler: Compiler
) -> Iterator[tuple[str, Callable[[], tuple[Run, str]]]]:
    """By name, how to make ready what maps images to features, with what must be known of it; in bf16 eager stays
    float32 and is left out."""
    if precision == "float32":
        yield EAGER, lambda: (network, "")
    yield "folded", lambda: ours(graph, precision, None)
    yield "compiled", lambda: ours(graph, precision, compiler)
    yield "torch.compile", lambda: (torch_compile(network, images, precision), "")
    yield "openvino", lambda: (openvino(graph, images, precision), "")


def ours(graph: Graph, precision: Precision, compiler: Compiler | None) -> tuple[Run, str]:
    """Our engine: compiled, or as it runs before, and why. PeerError if it cannot be compiled."""
    import torch

    from hapi.engine.agreement import given, outputs
    from hapi.engine.precision import rewritten

    program = graph.whole
    takes = rewritten(program, precision)

    def folded(images: Tensor) -> Tensor:
        return outputs(takes(*given([images], takes)))[0].float()

    if compiler is None:
        return folded, ""
    answer = compiler.wait(program, precision, torch.get_num_threads())
    run = answer.run
    if run is None and answer.is_made:
        return folded, f"runs as folded: {answer.why}"
    if run is None:
        raise PeerError(f"stays eager: {answer.why}")
    source = program if precision == "float32" else takes
    return lambda images: run(*given([images], source))[0].float(), ""


def torch_compile(network: nn.Module, images: Tensor, precision: Precision) -> Run:
    """PyTorch's compiler on a copy of the module, channels last, with freezing."""
    import copy

    import torch
    import torch._inductor.config as settings

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    twin = copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch._dynamo.reset()
    made = torch.compile(twin)

    def run(images: Tensor) -> Tensor:
        with settings.patch(freezing=True):
            found: Tensor = made(images.to(dtype=dtype, memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
            return found.float()

    with torch.inference_mode():
        run(images)
    return run


def openvino(graph: Graph, images: Tensor, precision: Precision) -> Run:
    """OpenVINO's CPU plugin on the same graph, one stream."""
    try:
        import openvino as ov
    except ImportError as error:
        raise PeerError("openvino is not installed: pip install openvino") from error
    import torch

    from hapi.engine.module import as_module

    with torch.no_grad():
        exported = torch.export.export(as_module(graph.whole), (images,))
    made = ov.compile_model(
        ov.convert_model(exported),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = made.create_infer_request()
    return lambda images: torch.from_numpy(request.infer({0: images.numpy()})[0]).clone()


def best_of(repeats: int, run: Run, images: Tensor) -> tuple[float, Tensor]:
    """Least seconds of the repeats after a warm-up, and the features."""
    import torch

    taken = []
    with torch.inference_mode():
        found = run(images)
        for _ in range(repeats):
            started = time.perf_counter()
            found = run(images)
            taken.append(time.perf_counter() - started)
    return min(taken), found


def error_of(expected: Tensor, found: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((expected - found).abs().max() / expected.abs().max())


def peak(precision: Precision, turns: int = 5) -> float:
    """FLOPs per second of the best of a large matrix product and a wide convolution."""
    import torch

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    one, other = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    conv = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(16, 256, 28, 28).to(dtype=dtype, memory_format=torch.channels_last)
    product, _ = best_of(turns, lambda given: given @ other, one)
    convolved, _ = best_of(turns, conv, image)
    return max(2 * PEAK_SIZE**3 / product, 2 * 9 * 256 * 256 * 16 * 28 * 28 / convolved)
