"""What the demo does: data, a server behind a thin link, profile, plan, training through the split and without it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

import hapi
import profiler
from benchmarks.demo.backbone import fitted_backbone
from benchmarks.localserver import local_server
from benchmarks.thinlink import ThinLink, thin_link
from compute_client import DataLoader, HeadTrainer
from compute_client.train import TrainResult
from hapi.data import open_store
from hapi.data.transfer import put_pictures
from hapi.plan import Plan, Profile

CALIBRATION_PICTURES = 32


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is. The defaults take about a minute on two cores."""

    images: int = 240
    classes: int = 5
    epochs: int = 5
    batch_size: int = 16
    bandwidth_bits_per_s: float = 20e6
    seed: int = 0
    learning_rate: float = 0.03


@dataclass(frozen=True)
class Run:
    """One training run: what the trainer says, and what crossed the link in both directions.

    `planning_*` is what came before it, once: measuring both tiers and the link, and sending the network to the server.
    """

    name: str
    result: TrainResult
    training_bytes: int
    planning_seconds: float = 0.0
    planning_bytes: int = 0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.planning_seconds + self.result.seconds

    @property
    def link_bytes(self) -> int:
        """All of it."""
        return self.planning_bytes + self.training_bytes


@dataclass(frozen=True)
class Comparison:
    """The two runs of the demo, `split` with HAPI's plan and `none` with nothing pushed down."""

    settings: DemoSettings
    profile: Profile
    split: Run
    none: Run

    @property
    def speedup(self) -> float:
        """Whole run against whole run, planning included."""
        return self.none.seconds / self.split.seconds

    @property
    def bytes_ratio(self) -> float:
        return self.none.link_bytes / self.split.link_bytes

    @property
    def loss_difference(self) -> float:
        """Largest difference between the two runs' losses, over all epochs."""
        pairs = zip(self.split.result.losses, self.none.result.losses, strict=True)
        return max(abs(ours - theirs) for ours, theirs in pairs)

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "profile": self.profile.to_json(),
            "runs": [{**asdict(run), "result": run.result.to_json()} for run in self.runs],
            "speedup": self.speedup,
            "bytes_ratio": self.bytes_ratio,
            "loss_difference": self.loss_difference,
        }

    @property
    def runs(self) -> tuple[Run, Run]:
        return self.split, self.none


class Screens(Protocol):
    """Who shows the story; called in this order, `training` once per run."""

    def opening(self, settings: DemoSettings) -> None: ...

    def data(self, pictures: list[Path], seconds: float) -> None: ...

    def serving(self, announced: Mapping[str, Any], link: ThinLink, bandwidth_bits_per_s: float) -> None: ...

    def decided(self, profile: Profile, plan: Plan, seconds: float) -> None: ...

    def training(self, name: str, trainer: HeadTrainer) -> TrainResult:
        """Runs `trainer.fit` with a progress display of its own."""
        ...

    def compared(self, comparison: Comparison) -> None: ...


def tell(settings: DemoSettings, screens: Screens) -> Comparison:
    """Runs the demo in a temporary folder; nothing is left behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the other core is the storage server's
    try:
        with tempfile.TemporaryDirectory(prefix="hapi-demo-") as folder:
            return _tell(settings, screens, Path(folder) / "photos")
    finally:
        torch.set_num_threads(threads)


def _tell(settings: DemoSettings, screens: Screens, photos: Path) -> Comparison:
    screens.opening(settings)
    begun = time.perf_counter()
    put_pictures(open_store(photos), settings.images, classes=settings.classes, seed=settings.seed, workers=2)
    pictures = sorted(photos.glob("*/*.jpg"))
    screens.data(pictures, time.perf_counter() - begun)
    backbone, transform = fitted_backbone(pictures[:: max(1, len(pictures) // CALIBRATION_PICTURES)], settings.seed)

    options = ["--threads", "1", "--workers", "1"]
    with local_server(photos, options=options) as server:
        rate = settings.bandwidth_bits_per_s

        def train(name: str, url: str, pushdown: str | Plan) -> TrainResult:
            with DataLoader(
                str(photos),
                backbone=backbone,
                transform=transform,
                server=url,
                pushdown=pushdown,
                batch_size=settings.batch_size,
                num_workers=1,
                seed=settings.seed,
                epochs=settings.epochs,
            ) as loader:
                return screens.training(name, HeadTrainer(loader, epochs=settings.epochs, lr=settings.learning_rate))

        with thin_link(server.url, rate) as link:
            screens.serving(server.announced, link, rate)
            begun = time.perf_counter()
            profile = hapi.profile(
                backbone,
                str(photos),
                transform=transform,
                example=transform(Image.open(pictures[0]).convert("RGB")).unsqueeze(0),
                server=link.url,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
            )
            plan = profiler.plan(profile)
            planning_seconds, planning_bytes = time.perf_counter() - begun, _carried(link)
            screens.decided(profile, plan, planning_seconds)
            result = train("split", link.url, plan)
            split = Run("split", result, _carried(link) - planning_bytes, planning_seconds, planning_bytes)
        with thin_link(server.url, rate) as link:
            result = train("none", link.url, "none")
            none = Run("none", result, _carried(link))
    comparison = Comparison(settings, profile, split, none)
    screens.compared(comparison)
    return comparison


def _carried(link: ThinLink) -> int:
    return link.to_client.bytes_sent + link.to_server.bytes_sent
