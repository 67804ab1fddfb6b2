"""`hapi bench decode`: how fast photographs become input tensors, on one thread, beside torchvision alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.bars import bars
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, times

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = (
    MODEL,
    SYSTEM,
    SAMPLES,
    BYTES,
    SECONDS,
    Column("images_per_s", "images/s", number),
    Column("ratio_to_pillow", "of pillow", times),
    Column("largest_difference", "differs by", number),
)
PLOTS = (Plot("rates", "Photographs per second", bars("images_per_s", "images per second", number), "On one thread."),)
QUICK_SAMPLES, SAMPLES_USED = 64, 400
PILLOW = "pillow"
DEFAULT_MODELS = ["torchvision:resnet18"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("decode")(decode)


def decode(
    model: options.Models = None,
    data: options.DataOption = None,
    samples: options.Samples = None,
    repeats: options.Repeats = 3,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Photographs per second from stored bytes to input tensors, on one thread.

    `pillow` is what a torchvision user runs (Pillow, then the preset of the weights), `hapi` the portable
    transform that both tiers run. `seconds` is the best of the repeats. The difference is the
    largest of any value to pillow's.
    """
    with Bench("decode", as_json=as_json, report=report, columns=COLUMNS, compare_with=[PILLOW], plots=PLOTS) as bench:
        import torch

        from benchmarks.bench.photographs import photographs

        torch.set_num_threads(1)
        count = samples or (QUICK_SAMPLES if quick else SAMPLES_USED)
        with photographs(data, count, seed=seed) as folder:
            pictures = [path.read_bytes() for path in sorted(folder.glob("*/*"))]
            for spec in model or DEFAULT_MODELS:
                expected: list[Tensor] = []
                called = spec.removeprefix("torchvision:")
                with bench.step(system="hapi", model=called):
                    for name, system in systems(spec).items():
                        with bench.trial(system=name, model=called) as trial:
                            seconds, tensors = best_of(repeats, system, pictures)
                            if name == PILLOW:
                                expected = tensors
                            trial.measured(
                                samples=len(pictures),
                                seconds=seconds,
                                bytes=sum(map(len, pictures)),
                                images_per_s=len(pictures) / seconds,
                                largest_difference=max(map(difference, tensors, expected), default=None),
                            )


def systems(spec: str) -> dict[str, Callable[[bytes], Tensor]]:
    """By name, from a stored photograph to the input tensor of a model."""
    import io

    from PIL import Image

    from hapi.data import describe_transform, load_sample
    from hapi.model.zoo import load_model

    preset: Any = load_model(spec, "none").transform
    portable = describe_transform(preset)

    def pillow(photograph: bytes) -> Tensor:
        with Image.open(io.BytesIO(photograph)) as image:
            return preset(image.convert("RGB"))

    return {PILLOW: pillow, "hapi": lambda photograph: load_sample(photograph, portable)}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest of any value."""
    return float((ours - theirs).abs().max())


def best_of(repeats: int, system: Callable[[bytes], Tensor], pictures: list[bytes]) -> tuple[float, list[Tensor]]:
    """(least seconds of a pass over all pictures, their tensors)."""
    times_taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        tensors = [system(picture) for picture in pictures]
        times_taken.append(time.perf_counter() - begun)
    return min(times_taken), tensors
