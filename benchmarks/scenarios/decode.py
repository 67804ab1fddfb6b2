"""`hapi bench decode`: how fast photographs become input tensors, beside torchvision alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.bars import bars
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

COLUMNS = (
    MODEL,
    SYSTEM,
    SAMPLES,
    BYTES,
    SECONDS,
    Column("images_per_s", "images/s", number),
    Column("ratio_to_pillow", "of pillow", times),
    Column("operations_ratio", "operations beside", times),
    Column("largest_difference", "differs by", number),
)
PLOTS = (Plot("rates", "Photographs per second", bars("images_per_s", "images per second", number)),)
QUICK_SAMPLES, SAMPLES_USED = 64, 400
PILLOW = "pillow"
DEFAULT_MODELS = ["torchvision:resnet18"]
BATCH = 32
READY_SECONDS, ALONE_SECONDS = 120.0, 1.0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("decode")(decode)


def decode(
    model: options.Models = None,
    data: options.DataOption = None,
    samples: options.Samples = None,
    workers: Annotated[int, typer.Option(min=1, help="That decode at once.")] = 1,
    repeats: options.Repeats = 3,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Photographs per second from stored bytes to input tensors.

    `pillow` is what a torchvision user runs (Pillow, then the preset of the weights; with more `workers` than one in a
    DataLoader's processes, in batches of 32), `hapi` the portable transform that both tiers run, on threads; and with
    several workers `processes` the same in processes, as a client does it with more than four beside a GPU, and
    `fetched` as a server does: processes that read the files as well, eight at a time. `seconds` is the best of the
    repeats. The difference is the largest of any value to pillow's. `operations beside`, with several
    workers: how many small operations another thread of the process starts meanwhile, of what it starts with nothing
    beside it; a thread that starts a network's operations on a GPU is like that one.
    """
    with Bench("decode", as_json=as_json, report=report, columns=COLUMNS, compare_with=[PILLOW], plots=PLOTS) as bench:
        import torch

        from benchmarks.bench.photographs import photographs

        torch.set_num_threads(1)
        alone = operations_alone() if workers > 1 else None
        count = samples or (QUICK_SAMPLES if quick else SAMPLES_USED)
        with photographs(data, count, seed=seed) as folder:
            paths = sorted(folder.glob("*/*"))
            pictures = [path.read_bytes() for path in paths]
            for spec in model or DEFAULT_MODELS:
                expected: list[Tensor] = []
                called = spec.removeprefix("torchvision:")
                with bench.step(system="hapi", model=called), contextlib.ExitStack() as at_end:
                    for name, system in systems(spec, paths, pictures, workers, at_end).items():
                        with bench.trial(system=name, model=called) as trial:
                            seconds, started, tensors = best_of(repeats, system, is_beside=alone is not None)
                            if name == PILLOW:
                                expected = tensors
                            trial.measured(
                                samples=len(pictures),
                                seconds=seconds,
                                bytes=sum(map(len, pictures)),
                                images_per_s=len(pictures) / seconds,
                                operations_ratio=started / alone if alone is not None else None,
                                largest_difference=max(map(difference, tensors, expected), default=None),
                                workers=workers,
                            )


def systems(
    spec: str, paths: Sequence[Path], pictures: Sequence[bytes], workers: int, at_end: contextlib.ExitStack
) -> dict[str, Callable[[], list[Tensor]]]:
    """By name, from the stored photographs to the input tensors of a model."""
    import io

    from PIL import Image

    from hapi.data import Sample, describe_transform, load_sample, open_store
    from hapi.data.decoding import Load, Processes
    from hapi.data.images import MAX_PIXELS
    from hapi.data.stores import described
    from hapi.errors import HapiError
    from hapi.model.zoo import load_model
    from storage_server.extraction.loading import MOST_TOGETHER

    preset: Any = load_model(spec, "none").transform
    portable = describe_transform(preset)

    def pillow(photograph: bytes) -> Tensor:
        with Image.open(io.BytesIO(photograph)) as image:
            tensor: Tensor = preset(image.convert("RGB"))
            return tensor

    def together(load: Load) -> list[Tensor]:
        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(lambda photograph: load(photograph, portable), pictures))

    if workers == 1:
        return {
            PILLOW: lambda: [pillow(photograph) for photograph in pictures],
            "hapi": lambda: [load_sample(photograph, portable) for photograph in pictures],
        }

    class Pictures:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> Tensor:
            return pillow(pictures[index])

    def loaded() -> Callable[[], list[Tensor]]:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            Pictures(),  # type: ignore[arg-type]
            batch_size=BATCH,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="fork",  # a class of this function is known to a copy of this process only
        )
        return lambda: [tensor for batch in loader for tensor in batch]

    def started() -> Processes:
        processes = Processes()
        at_end.callback(processes.close)
        if not processes.wait(READY_SECONDS):
            raise HapiError("no processes could be started; the log says why.")
        return processes

    def forked() -> Callable[[], list[Tensor]]:
        processes = started()
        return lambda: together(processes)

    def fetched() -> Callable[[], list[Tensor]]:
        processes, store = started(), described(open_store(paths[0].parent.parent))
        shape = load_sample(pictures[0], portable).shape
        samples = [
            (index, Sample(f"{path.parent.name}/{path.name}", 0, len(data), None, ""))
            for index, (path, data) in enumerate(zip(paths, pictures, strict=True))
        ]
        assert store is not None
        how: dict[str, Any] = {"seed": 0, "epoch": 0, "shape": shape, "most_bytes": MAX_PIXELS * 3}

        def fetch(first: int) -> list[Tensor]:
            found = processes.fetch(store, samples[first : first + MOST_TOGETHER], portable, **how)
            tensors = [one.tensor for one in found if one is not None]
            if len(tensors) < len(found):
                raise HapiError(f"{len(found) - len(tensors)} of {len(found)} photographs were not fetched.")
            return tensors

        def work() -> list[Tensor]:
            with ThreadPoolExecutor(workers) as threads:
                groups = threads.map(fetch, range(0, len(samples), MOST_TOGETHER))
                return [tensor for group in groups for tensor in group]

        return work

    return {
        PILLOW: once(loaded),
        "hapi": lambda: together(load_sample),
        "processes": once(forked),
        "fetched": once(fetched),
    }


def once(make: Callable[[], Callable[[], list[Tensor]]]) -> Callable[[], list[Tensor]]:
    """What `make` makes, made when it is first called."""
    made: list[Callable[[], list[Tensor]]] = []

    def work() -> list[Tensor]:
        if not made:
            made.append(make())
        return made[0]()

    return work


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest of any value."""
    return float((ours - theirs).abs().max())


def best_of(
    repeats: int, system: Callable[[], list[Tensor]], *, is_beside: bool = False
) -> tuple[float, float, list[Tensor]]:
    """(least seconds of a pass over all pictures, operations per second that were started beside it, the tensors);
    after a pass that is not timed."""
    taken: list[tuple[float, float]] = []
    system()
    for _ in range(repeats):
        with operations() if is_beside else contextlib.nullcontext([0]) as count:
            begun = time.perf_counter()
            tensors = system()
            seconds = time.perf_counter() - begun
            taken.append((seconds, count[0] / seconds))
    return *min(taken), tensors


def operations_alone() -> float:
    """Per second, of a thread with nothing beside it."""
    with operations() as count:
        time.sleep(ALONE_SECONDS)
        return count[0] / ALONE_SECONDS


@contextlib.contextmanager
def operations() -> Iterator[list[int]]:
    """How many small operations a thread has started since this began, in a list of one."""
    import torch

    count, is_over, small = [0], threading.Event(), torch.zeros(64)

    def start() -> None:
        while not is_over.is_set():
            small.add_(1)
            count[0] += 1

    thread = threading.Thread(target=start, name="operations", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        is_over.set()
        thread.join()
