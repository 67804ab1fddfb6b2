"""`hapi bench device`: images per second of the server on its device, beside a plain compiled loop on the same one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench, Trial
from benchmarks.bench.table import MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hapi.data import TransformSpec
    from hapi.engine import Choice, Precision
    from hapi.model import Graph

COLUMNS = (
    MODEL,
    Column("precision", "precision", is_text=True),
    SYSTEM,
    SAMPLES,
    SECONDS,
    Column("images_per_s", "images/s", number),
    Column("ratio_to_loop", "of loop", times),
    Column("ratio_to_loop_decoding", "of loop, decoding", times),
    Column("device_images_per_s", "on the device", number),
    Column("batch", "batch"),
    Column("engine", "engine", is_text=True),
    Column("largest_error", "error", lambda value: f"{value:.1e}"),
    Column("ready_seconds", "ready after", number),
)
MODELS = ["resnet50", "vit_b_16"]
QUICK_MODELS = ["resnet18"]
BATCH, QUICK_BATCH = 128, 16
SAMPLES_USED, QUICK_SAMPLES = 4096, 64
TIMED_BATCHES = 20
COMPILING_SECONDS = 120.0
"""Most that the server's compiler is waited for."""
STARTING_SECONDS = 20.0
"""For which a server beside a GPU is not timed: threads decode until the processes that are to are there."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("device")(device)


def device(
    model: options.Models = None,
    data: options.DataOption = None,
    samples: options.Samples = None,
    device: options.Device = "cuda",
    precision: Annotated[Literal["bf16", "float32"], typer.Option(help="Of all systems.")] = "bf16",
    engine: Annotated[Literal["auto", "eager", "compiled"], typer.Option(help="Of the server.")] = "compiled",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of the loops; the server finds its own.")] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="The server's, which compiled code is kept in and found. [default: an empty one]"),
    ] = None,
    repeats: options.Repeats = 2,
    system: options.Systems = None,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """The whole backbone on one device, from tensors that are there, and from photographs in a folder.

    `loop`: the module under torch.compile, over batches on the device. `prefix`: what the server runs for a batch whose
    samples lie in host memory, both copies included. `loop, decoding`: a DataLoader with a worker per processor over
    the folder, then the same loop. `server`: a request over HTTP, answered from the same folder; `on the device` is its
    rate while the device runs, so without reading and decoding. Errors are to the module in float32, over the largest
    feature. `seconds` are the best of the repeats, after one pass that is not timed.
    """
    options.check_known("system", system, SYSTEMS)
    with Bench("device", as_json=as_json, report=report, columns=COLUMNS, finish=with_ratios) as bench:
        import torch

        from benchmarks.bench.photographs import multiplied, photographs
        from benchmarks.scenarios.engine import load
        from hapi.engine import check_precision, exact_sums
        from hapi.errors import InputError
        from hapi.model import capture

        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"--device {device}: torch finds no CUDA device here. `--device cpu` measures a processor."
            )
        check_precision(precision, device)
        exact_sums()
        if device != "cpu":
            torch.set_num_threads(1)  # as the server does beside a GPU
        size = batch_size or (QUICK_BATCH if quick else BATCH)
        count = samples or (QUICK_SAMPLES if quick else SAMPLES_USED)
        with (
            photographs(data, count, seed=seed) as few,
            multiplied(few, count) as folder,
            tempfile.TemporaryDirectory(prefix="hapi-bench-device-") as empty,
        ):
            for spec in model or (QUICK_MODELS if quick else MODELS):
                name = spec.removeprefix("torchvision:")
                with bench.step(system="server", model=name, precision=precision):
                    network, images = load(spec, size)
                    graph = capture(network, images[:2], name=spec)
                    case = Case(
                        network,
                        images,
                        graph,
                        transform_of(spec),
                        folder,
                        count,
                        device,
                        precision,
                        engine,
                        cache_dir or Path(empty),
                    )
                    for called, measure in SYSTEMS.items():
                        if system and called not in system:
                            continue
                        with bench.trial(system=called, model=name, precision=precision) as trial:
                            measure(case, trial, repeats)


@dataclass(frozen=True)
class Case:
    """What every system is given. `images` is one batch (B, 3, H, W) of noise in host memory."""

    network: nn.Module
    images: Tensor
    graph: Graph
    transform: TransformSpec
    folder: Path
    samples: int
    device: str
    precision: Precision
    engine: Choice
    kept: Path

    def expected(self, images: Tensor) -> Tensor:
        """The module's own features in float32, on the device."""
        import copy

        import torch

        twin = copy.deepcopy(self.network).to(self.device)
        with torch.inference_mode():
            found: Tensor = twin(images.to(self.device))
        return found.cpu()

    def loop(self) -> Callable[[Tensor], Tensor]:
        """The compiled module: a batch on the device in, features on the device out."""
        import copy

        import torch

        dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
        twin = copy.deepcopy(self.network).to(self.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch._dynamo.reset()
        made = torch.compile(twin)

        @torch.inference_mode()
        def run(images: Tensor) -> Tensor:
            found: Tensor = made(images.to(dtype=dtype, memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
            return found

        return run


def loop(case: Case, trial: Trial, repeats: int) -> None:
    """Batches that lie on the device."""
    from benchmarks.scenarios.engine import error_of

    began = time.perf_counter()
    run = case.loop()
    images = case.images.to(case.device)
    error = error_of(case.expected(case.images), run_whole(run, images))
    ready = time.perf_counter() - began
    seconds = best_of(repeats, lambda: [run(images) for _ in range(TIMED_BATCHES)], case.device)
    tell(trial, TIMED_BATCHES * len(images), seconds, batch=len(images), largest_error=error, ready_seconds=ready)


def prefix(case: Case, trial: Trial, repeats: int) -> None:
    """The server's own way for a batch: copied there, computed, copied back."""
    from functools import partial

    import torch

    from benchmarks.scenarios.engine import error_of
    from hapi.engine import Compiler, Engine
    from storage_server.extraction.copies import copies_for
    from storage_server.extraction.engine import Prefix

    began = time.perf_counter()
    compiler = Compiler(case.kept / "compiled")
    try:
        why = ""
        if case.engine != "eager":
            whole = case.graph.whole.to(case.device)
            why = compiler.wait(whole, case.precision, torch.get_num_threads()).why
        engines: Any = partial(Engine, choice=case.engine, compiler=compiler)
        ours = Prefix.of(case.graph, "output", case.device, case.graph.digest, engines, case.precision)
        error = error_of(case.expected(case.images), ours.run(case.images)[0])
        ready = time.perf_counter() - began
        copies = copies_for(case.device)
        rows = [copies.lay_ready(image) for image in case.images]

        def work() -> None:
            for _ in range(TIMED_BATCHES):
                ours.run(copies.gather(rows))

        seconds = best_of(repeats, work, case.device)
        tell(
            trial, TIMED_BATCHES * len(case.images), seconds, batch=len(case.images), largest_error=error,
            engine=ours.engine, ready_seconds=ready, note=why,
        )  # fmt: skip
    finally:
        compiler.close()


def loop_decoding(case: Case, trial: Trial, repeats: int) -> None:
    """A DataLoader reads and decodes; its last batch is padded, so that nothing is compiled for it."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from hapi.data import load_sample
    from hapi.machine import processors

    class Photographs(ImageFolder):
        def __getitem__(self, index: int) -> Any:
            path, label = self.samples[index]
            return load_sample(Path(path).read_bytes(), case.transform), label

    size = len(case.images)
    loader: DataLoader[Any] = DataLoader(
        Photographs(str(case.folder)),
        batch_size=size,
        num_workers=processors(),
        multiprocessing_context="fork",  # a class of this function is known to a copy of this process only
        pin_memory=case.device != "cpu",
        persistent_workers=True,
    )
    run = case.loop()
    run_whole(run, case.images.to(case.device))

    def epoch() -> None:
        for images, _ in loader:
            there = images.to(case.device, non_blocking=True)
            if len(there) < size:
                there = torch.nn.functional.pad(there, (0, 0, 0, 0, 0, 0, 0, size - len(there)))
            run_whole(run, there)

    tell(trial, case.samples, best_of(repeats, epoch, case.device), batch=size)


def server(case: Case, trial: Trial, repeats: int) -> None:
    """A request for everything, over HTTP on this machine."""
    from benchmarks.localserver import local_server
    from benchmarks.scenarios.engine import error_of
    from hapi.data import load_sample
    from hapi.wire.protocol import ExtractRequest
    from profiler.remote import ServerClient

    import torch  # isort: skip

    options = ("--device", case.device, "--precision", case.precision, "--cache-dir", str(case.kept))
    quiet = {"HAPI_SERVER_FEATURE_CACHE_BYTES": "0", "HAPI_SERVER_ENGINE": case.engine}
    with local_server(case.folder, options=options, environment=quiet) as running, ServerClient(running.url) as client:
        dataset = client.register(case.folder.as_uri())
        client.ensure_model(case.graph)
        request = ExtractRequest(
            dataset=dataset.digest,
            indices=list(range(dataset.samples)),
            model=case.graph.digest,
            cut="output",
            transform=case.transform.to_json(),
        )
        rows: dict[int, Tensor] = {}

        def whole() -> None:
            for batch in client.extract(request):
                if batch.errors:
                    raise RuntimeError(f"{len(batch.errors)} samples failed: {batch.errors[0]}")
                for place, index in enumerate(batch.indices.tolist()):
                    if index < 8:
                        rows[index] = batch.tensors[0][place].clone()

        began = time.perf_counter()
        whole()
        least = 0.0 if case.device == "cpu" else STARTING_SECONDS
        while (passed := time.perf_counter() - began) < COMPILING_SECONDS:
            is_as_asked = case.engine != "compiled" or "compiled" in client.status().prefixes[0].engine
            if is_as_asked and passed >= least:
                break
            whole()
        ready = time.perf_counter() - began
        seconds = best_of(repeats, whole, "cpu")
        (told,) = client.status().prefixes
        paths = sorted(case.folder.glob("*/*"))[:8]
        images = torch.stack([load_sample(path.read_bytes(), case.transform) for path in paths])
        found = torch.stack([rows[index] for index in range(len(paths))]).float()
        tell(
            trial, dataset.samples, seconds, batch=told.batch, engine=told.engine, ready_seconds=ready,
            device_images_per_s=told.images_per_s, largest_error=error_of(case.expected(images), found),
        )  # fmt: skip


SYSTEMS: dict[str, Callable[[Case, Trial, int], None]] = {
    "loop": loop,
    "prefix": prefix,
    "loop, decoding": loop_decoding,
    "server": server,
}


def with_ratios(rows: list[Any]) -> list[Any]:
    """Adds how fast each is beside the loops of the same network."""
    rates = {(row.model, row.system): row.get("images_per_s") for row in rows if not row.failed}

    def ratios(row: Any) -> Iterator[tuple[str, float]]:
        for system, key in (("loop", "ratio_to_loop"), ("loop, decoding", "ratio_to_loop_decoding")):
            other, own = rates.get((row.model, system)), row.get("images_per_s")
            if other and own and row.system != system:
                yield key, own / other

    return [row.filled(**dict(ratios(row))) for row in rows]


def tell(trial: Trial, samples: int, seconds: float, **values: object) -> None:
    """The row's values."""
    trial.measured(samples=samples, seconds=seconds, images_per_s=samples / seconds, **values)


def transform_of(name: str) -> TransformSpec:
    """The preset of the network's weights, as both tiers run it."""
    from hapi.data import describe_transform
    from hapi.model import load_model

    return describe_transform(load_model(name if ":" in name else f"torchvision:{name}", "none").transform)


def run_whole(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The features of a batch, on the host in float32."""
    return run(images).float().cpu()


def best_of(repeats: int, work: Callable[[], object], device: str) -> float:
    """Least seconds of the repeats, after one that is not timed; the device has finished in each."""
    import torch

    def once() -> float:
        began = time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(repeats))
