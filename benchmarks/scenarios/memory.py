"""`hapi bench memory`: the server in a memory control group, ours beside fixed batches and the published rule."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.bench import options
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench, Trial
from benchmarks.bench.table import MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times
from hapi.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from benchmarks.cgroup import MemoryGroup
    from hapi.data import TransformSpec
    from hapi.model import Graph

MODELS = ("alexnet", "vgg11", "resnet50", "densenet121", "vit_b_16")
FIXED, QUICK_FIXED = (2, 4, 8, 16, 32, 64), (8,)
"""From the smallest that ours was seen to take (vgg19): the best of them is what ours is held against."""
SAMPLES_USED, QUICK_SAMPLES = 192, 48
SAMPLE_EVERY_SECONDS = 0.01
WARM_UPS, REPEATS = 4, 2
"""Jobs that are not timed: one, and more while ours still tries batch sizes; and those of which the faster counts."""
COLUMNS = (
    MODEL,
    SYSTEM,
    SAMPLES,
    Column("batch", "batch"),
    SECONDS,
    Column("images_per_s", "images/s", number),
    Column("ratio_to_best_fixed", "of best fixed", times),
    Column("anonymous_peak_bytes", "not file cache", format_bytes),
    Column("peak_bytes", "peak", format_bytes),
    Column("budget_bytes", "limit", format_bytes),
    Column("survived", "survived"),
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("memory")(memory)


def memory(
    model: options.Models = None,
    data: options.DataOption = None,
    samples: options.Samples = None,
    room: Annotated[str, typer.Option(help="Above the idle server and the weights.")] = "400MB",
    fixed: Annotated[list[int] | None, typer.Option(min=1, help="A fixed batch; may be repeated.")] = None,
    system: options.Systems = None,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """The same job under the same limit: one request for all samples, whole backbone on the server.

    The limit is what an idle server takes, measured first, plus the weights, plus --room. Systems: `ours`; `fixed-N`,
    always N samples per batch; `whole`, the request at once; `paper-lp`, the published linear program. A policy that
    does not survive is no failure of the benchmark: `survived` says what happened. `seconds` are the better of two warm
    jobs; `peak` is what the kernel counted, file cache included, warm-up included. Needs root (control groups).
    """
    from benchmarks.policies.watching import plots

    with Bench(
        "memory", as_json=as_json, report=report, columns=COLUMNS, finish=with_best_fixed, plots=plots()
    ) as bench:
        from benchmarks.bench.photographs import photographs

        count = samples or (QUICK_SAMPLES if quick else SAMPLES_USED)
        names = [name.removeprefix("torchvision:") for name in model or (MODELS[2:3] if quick else MODELS)]
        sizes = fixed or (QUICK_FIXED if quick else FIXED)
        systems = system or ["ours", *(f"fixed-{size}" for size in sizes), "whole", "paper-lp"]
        for one in systems:
            policy(one)
        with photographs(data, count, seed=seed) as folder:
            idle = idle_bytes(folder)
            bench.say(f"an idle server takes {format_bytes(idle)}")
            for name in names:
                with bench.step(system="ours", model=name):
                    graph, transform = prepared(name)
                    limit = idle + graph.weight_bytes + parse_bytes(room)
                    for one in systems:
                        keys = {"system": one, "model": name, "samples": count, "budget_bytes": limit}
                        with bench.trial(**keys, precision="float32") as trial:
                            measure(trial, Setting(folder, graph, transform, limit), one)


@dataclass(frozen=True)
class Setting:
    """What every system is given."""

    folder: Path
    graph: Graph
    transform: TransformSpec
    limit_bytes: int


def measure(trial: Trial, setting: Setting, system: str) -> None:
    """Runs the job in a fresh server inside of a fresh group."""
    from benchmarks.cgroup import memory_group
    from hapi.errors import HapiError

    with memory_group(setting.limit_bytes) as group:
        told, died = {}, ""
        with watched(group) as watch:
            try:
                told = job(setting, system, group)
            except HapiError as error:
                died = "killed by the kernel" if group.kills else f"error: {error}"
        survived = died == "" and not group.kills
        trial.measured(
            **told,
            survived="yes" if survived else died.partition("\n")[0][:120] or "killed by the kernel",
            peak_bytes=group.peak_bytes,
            anonymous_peak_bytes=watch.peak,
            failed=system == "ours" and not survived,
        )


def job(setting: Setting, system: str, group: MemoryGroup) -> dict[str, object]:
    """Seconds, images per second and batch of the timed requests; HapiError if it was not answered whole."""
    from benchmarks.localserver import SERVE, local_server
    from benchmarks.policies.watching import batch_sizes
    from hapi.errors import WireError
    from hapi.wire.protocol import ExtractRequest
    from profiler.remote import ServerClient

    named = policy(system)
    program = SERVE if named is None else (sys.executable, "-m", "benchmarks.policies.server", "--policy", named)
    quiet = {"HAPI_SERVER_FEATURE_CACHE_BYTES": "0"}
    with local_server(setting.folder, prefix=group.command(), program=program, environment=quiet) as server:
        client = ServerClient(server.url)
        dataset = client.register(setting.folder.as_uri())
        client.ensure_model(setting.graph)
        request = ExtractRequest(
            dataset=dataset.digest,
            indices=list(range(dataset.samples)),
            model=setting.graph.digest,
            cut="output",
            transform=setting.transform.to_json(),
        )

        def answer() -> dict[str, object]:
            begun, rows, received = time.perf_counter(), 0, 0
            for batch in client.extract(request):
                if batch.errors:
                    raise WireError(next(iter(batch.errors.values())))
                rows += len(batch.indices)
                received += sum(tensor.nbytes for tensor in batch.tensors)
            seconds = time.perf_counter() - begun
            if rows != dataset.samples:
                raise WireError(f"{rows} of {dataset.samples} rows came.")
            return {"seconds": seconds, "images_per_s": rows / seconds, "bytes": received}

        with batch_sizes(client) as sizes:
            for _ in range(WARM_UPS):
                answer()
                if all(prefix.reason != "exploring" for prefix in client.status().prefixes):
                    break
            told = min((answer() for _ in range(REPEATS)), key=lambda one: float(str(one["seconds"])))
        told |= {"batches": sizes}
        prefixes = client.status().prefixes
        if prefixes:
            told |= {
                "batch": prefixes[0].batch,
                "reason": prefixes[0].reason,
                "predicted_peak_bytes": prefixes[0].predicted_peak_bytes,
                "measured_peak_bytes": prefixes[0].measured_peak_bytes,
                "out_of_memory": prefixes[0].out_of_memory,
            }
    return told


def policy(system: str) -> str | None:
    """As benchmarks.policies.server has it, None for ours; InputError for a system that there is not."""
    from benchmarks.policies.server import policy_of
    from hapi.errors import InputError

    if system == "ours":
        return None
    named = system.replace("fixed-", "fixed:")
    try:
        policy_of(named)
    except InputError as error:
        raise InputError(f"system {system!r}: there are ours, fixed-N, whole and paper-lp.") from error
    return named


def idle_bytes(folder: Path) -> int:
    """What a server takes that has listed its data and waits."""
    from benchmarks.cgroup import memory_group
    from benchmarks.localserver import local_server
    from profiler.remote import ServerClient

    with memory_group() as group, local_server(folder, prefix=group.command()) as server:
        ServerClient(server.url).register(folder.as_uri())
        return group.peak_bytes


def prepared(name: str) -> tuple[Graph, TransformSpec]:
    """A backbone with random weights (torchvision's unless its name says otherwise), and its transform."""
    from hapi.data import describe_transform
    from hapi.model import capture
    from hapi.model.zoo import load_model

    model = load_model(name if ":" in name else f"torchvision:{name}", "none")
    return capture(model.backbone, model.example, name=name), describe_transform(model.transform)


class Watch:
    """The most that was seen."""

    peak = 0


@contextmanager
def watched(group: MemoryGroup) -> Iterator[Watch]:
    """Reads what the group holds besides file cache, often, from a thread."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_EVERY_SECONDS):
            watch.peak = max(watch.peak, group.anonymous_bytes)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def with_best_fixed(rows: list[Row]) -> list[Row]:
    """Each row with its rate over that of the fastest fixed batch that survived with the same model."""
    best: dict[str, float] = {}
    for row in rows:
        if row.get("survived") == "yes" and (row.system == "whole" or row.system.startswith("fixed-")):
            best[row.model] = max(best.get(row.model, 0.0), row.get("images_per_s") or 0.0)
    return [
        row.filled(ratio_to_best_fixed=rate / best[row.model])
        if best.get(row.model) and row.get("survived") == "yes" and (rate := row.get("images_per_s"))
        else row
        for row in rows
    ]
