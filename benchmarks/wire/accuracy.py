"""Heads trained on features that travelled in a lossy codec, beside heads trained on the exact ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench.bars import bars
from benchmarks.bench.photographs import photographs
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BYTES, MODEL, SECONDS, SYSTEM, Column, number, times
from hapi.data import TransformSpec, describe_transform, load_sample
from hapi.model import Cut, Graph, capture, load_model
from hapi.plan import INPUT
from hapi.wire import FeatureBatch, StreamEncoder, get_codec, read_stream

EXACT = "float32"
BATCH = 50
HELD_OUT = 0.2
LOST = 0.5
"""Relative error from which features are lost rather than rounded."""

COLUMNS = (
    MODEL,
    Column("cut", "cut", is_text=True),
    SYSTEM,
    Column("bytes_per_sample", "bytes/sample", number),
    Column("ratio", "smaller", times),
    Column("accuracy", "accuracy", lambda value: f"{value:.4f}"),
    Column("accuracy_change", "change", lambda value: f"{value:+.4f}"),
    Column("accuracy_change_error", "+-", lambda value: f"{value:.4f}"),
    Column("loss_change", "loss change", lambda value: f"{value:+.5f}"),
    Column("feature_error", "feature error", lambda value: f"{value:.2e}"),
    SECONDS,
    BYTES,
)
PLOTS = (
    Plot(
        "accuracy",
        "What a codec does to the accuracy of a head",
        bars(
            "accuracy_change",
            "change of the accuracy",
            lambda value: f"{value:+.4f}",
            names=("cut", "system"),
            line=0.0,
            error="accuracy_change_error",
        ),
        "Mean over divisions of the photographs, with its standard error: within two of them it is noise.",
    ),
    Plot(
        "bytes",
        "What it saves",
        bars("ratio", "times smaller than float32", times, names=("cut", "system"), line=1.0),
        "Bytes of the whole stream.",
    ),
)


@dataclass(frozen=True)
class Settings:
    """What is compared; without cuts, `most_cuts` of them, evenly over the network."""

    models: tuple[str, ...]
    cuts: tuple[str, ...]
    codecs: tuple[str, ...]
    samples: int
    data: str | None
    weights: str
    seeds: int
    epochs: int
    most_cuts: int


@dataclass(frozen=True)
class Judged:
    """Heads on one set of features: accuracy and loss on the part to judge by, per seed."""

    accuracies: tuple[float, ...]
    losses: tuple[float, ...]


def run(settings: Settings, *, report: Path | None = None, as_json: bool = False) -> None:
    """A row per network, cut and codec; the exact codec's is the first of a cut."""
    for codec in settings.codecs:
        get_codec(codec)
    torch.set_num_threads(1)  # seconds are those of one thread
    with (
        Bench(
            "codecs", as_json=as_json, report=report, columns=COLUMNS, title="Codecs that change features", plots=PLOTS
        ) as bench,
        photographs(settings.data, settings.samples) as folder,
    ):
        if settings.data is None:
            bench.remark("photographs are synthetic: accuracies are not those of real ones (--data)")
        pictures, labels = _read(folder)
        for spec in settings.models:
            weights = _weights(settings.weights, spec)
            name = spec.removeprefix("torchvision:")
            if weights == "none":
                bench.remark(f"{name}: random weights (--weights none), so features are not those of a trained network")
            with bench.step(system=EXACT, model=name):
                loaded = load_model(spec, weights)
                graph = capture(loaded.backbone, loaded.example, name=loaded.name)
                _compare(bench, settings, name, graph, _inputs(pictures, describe_transform(loaded.transform)), labels)


def round_trip(cut: Cut, codec: str, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], int, float, float]:
    """(tensors as they arrive, bytes of the stream, seconds to encode, seconds to decode)."""
    rows = len(tensors[0])
    begun = time.perf_counter()
    encoder = StreamEncoder(cut.shapes, cut.dtypes, codec, cut=cut.name)
    parts = [encoder.header()]
    parts += encoder.encode_parts(FeatureBatch(np.arange(rows), np.zeros(rows, np.int64), tensors))
    parts.append(encoder.end())
    encoded = time.perf_counter()
    batches = list(read_stream(parts))
    decoded = time.perf_counter()
    arrived = tuple(torch.cat(columns) for columns in zip(*(batch.tensors for batch in batches), strict=True))
    return arrived, sum(map(len, parts)), encoded - begun, decoded - encoded


def judge(features: Tensor, labels: Tensor, *, seeds: int, epochs: int) -> Judged:
    """Trains a linear head per seed, on one division of the samples each: features (n, f), labels (n,).

    Features are standardised with the training part's mean and deviation; Adam over the whole part, 0.01, with weight
    decay. The same seed divides and begins the same, whatever the features.
    """
    accuracies, losses = [], []
    classes = int(labels.max()) + 1
    for seed in range(seeds):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        held, part = order[: round(HELD_OUT * len(order))], order[round(HELD_OUT * len(order)) :]
        center, spread = features[part].mean(0), features[part].std(0) + 1e-6
        scaled = (features - center) / spread
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], classes)
        steps = torch.optim.Adam(head.parameters(), lr=0.01, weight_decay=1e-3)
        for _ in range(epochs):
            steps.zero_grad()
            nn.functional.cross_entropy(head(scaled[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
            steps.step()
        with torch.no_grad():
            scores = head(scaled[held])
            losses.append(float(nn.functional.cross_entropy(scores, labels[held])))
            accuracies.append(float((scores.argmax(1) == labels[held]).float().mean()))
    return Judged(tuple(accuracies), tuple(losses))


def chosen_cuts(graph: Graph, names: Sequence[str], most: int) -> list[Cut]:
    """The named cuts, or up to `most`, evenly over the network and with `output`."""
    if names:
        return [graph.cut(name) for name in names]
    cuts = [cut for cut in graph.cuts if cut.name != INPUT]
    return [cuts[(place + 1) * len(cuts) // most - 1] for place in range(min(most, len(cuts)))]


def _compare(bench: Bench, settings: Settings, name: str, graph: Graph, inputs: Tensor, labels: Tensor) -> None:
    exact: Judged | None = None
    wanted: Tensor | None = None
    for cut in chosen_cuts(graph, settings.cuts, settings.most_cuts):
        for codec in (EXACT, *(codec for codec in settings.codecs if codec != EXACT)):
            with bench.trial(system=codec, model=name, cut=cut.name, samples=len(inputs)) as trial:
                features, size, encode, decode = _features(graph, cut, codec, inputs)
                judged = judge(features, labels, seeds=settings.seeds, epochs=settings.epochs)
                if codec == EXACT:
                    exact, wanted = judged, features
                assert exact is not None
                assert wanted is not None
                error = float((features - wanted).norm() / wanted.norm())
                if error > LOST:
                    largest = float(wanted.abs().max())
                    trial.measured(note=f"the largest feature is {largest:.1e}: {codec} cannot tell such values")
                trial.measured(
                    **_figures(judged, exact),
                    feature_error=error,
                    bytes=size,
                    bytes_per_sample=size / len(inputs),
                    ratio=cut.bytes_per_sample * len(inputs) / size,
                    seconds=encode + decode,
                    encode_seconds=encode,
                    decode_seconds=decode,
                )


def _figures(judged: Judged, exact: Judged) -> dict[str, Any]:
    changes = [mine - theirs for mine, theirs in zip(judged.accuracies, exact.accuracies, strict=True)]
    losses = [mine - theirs for mine, theirs in zip(judged.losses, exact.losses, strict=True)]
    return {
        "accuracy": mean(judged.accuracies),
        "accuracy_spread": stdev(judged.accuracies),
        "accuracy_change": mean(changes),
        "accuracy_change_error": stdev(changes) / len(changes) ** 0.5,
        "loss": mean(judged.losses),
        "loss_change": mean(losses),
        "loss_change_error": stdev(losses) / len(losses) ** 0.5,
        "seeds": len(changes),
    }


def _features(graph: Graph, cut: Cut, codec: str, inputs: Tensor) -> tuple[Tensor, int, float, float]:
    """The backbone's features (n, f) when they travel at a cut, with bytes, encode and decode seconds of all."""
    prefix, suffix = graph.split(cut)
    found: list[Tensor] = []
    size, encode, decode = 0, 0.0, 0.0
    with torch.inference_mode():
        for batch in torch.split(inputs, BATCH):
            sent = prefix(batch)
            sent = (sent,) if isinstance(sent, Tensor) else sent
            arrived, length, write, read = round_trip(cut, codec, sent)
            size, encode, decode = size + length, encode + write, decode + read
            features = suffix(*arrived)
            found.append((features if isinstance(features, Tensor) else features[0]).flatten(1))
    return torch.cat(found).clone(), size, encode, decode


def _weights(weights: str, spec: str) -> str:
    """The file of a folder that belongs to a network; InputError by `load_model` if it is not there."""
    folder = Path(weights)
    return str(folder / f"{spec.partition(':')[2]}.safetensors") if folder.is_dir() else weights


def _read(folder: Path) -> tuple[list[bytes], Tensor]:
    """Stored photographs and their labels (n,)."""
    paths = sorted(folder.glob("*/*"))
    classes = sorted({path.parent.name for path in paths})
    return [path.read_bytes() for path in paths], torch.tensor([classes.index(path.parent.name) for path in paths])


def _inputs(pictures: Sequence[bytes], transform: TransformSpec) -> Tensor:
    def tensors() -> Iterator[Tensor]:
        for index, data in enumerate(pictures):
            yield load_sample(data, transform, seed=0, epoch=0, index=index)

    return torch.stack(list(tensors()))
