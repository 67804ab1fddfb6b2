"""The demo's story on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from benchmarks.demo.backbone import NAME
from benchmarks.demo.story import Comparison, DemoSettings
from benchmarks.thinlink import ThinLink
from compute_client import HeadTrainer
from compute_client.progress import TerminalProgress
from compute_client.train import TrainResult
from hapi.plan import OUTPUT, CutCost, Plan, Profile
from hapi.units import format_bandwidth, format_bytes, format_seconds
from profiler import profile_table

WIDE_COLUMNS = 110
TITLES = {"split": "through the split", "none": "without it (nothing pushed down)"}


class TerminalScreens:
    """Shows each chapter under a numbered heading."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._chapter = 0

    def opening(self, settings: DemoSettings) -> None:
        self._out.print(
            Panel.fit(
                "Photographs lie in a store; the network to train sits behind a thin link.\n"
                "Most of that network is frozen, so its first part can run [bold]next to the store[/],\n"
                "and only small features travel. Everything below is measured now, on this machine.",
                title="[bold]HAPI[/] split-execution transfer learning",
            )
        )

    def data(self, pictures: list[Path], seconds: float) -> None:
        self._heading("The data")
        size = sum(path.stat().st_size for path in pictures)
        classes = sorted({path.parent.name for path in pictures})
        self._out.print(
            f"{len(pictures)} photo-like JPEGs in {len(classes)} classes ({', '.join(classes)}), "
            f"{format_bytes(size)}, {format_bytes(size / len(pictures))} each, made in {format_seconds(seconds)}."
        )

    def serving(self, announced: Mapping[str, Any], link: ThinLink, bandwidth_bits_per_s: float) -> None:
        self._heading("The storage server, and a thin link in front of it")
        self._out.print(
            f"[bold]hapi serve[/] is a process of its own beside the data, on {announced['device']}, with one thread "
            f"and {format_bytes(announced['budget_bytes'])} of memory to use.\n"
            f"A relay at {link.url} lets {format_bandwidth(bandwidth_bits_per_s)} through in each direction."
        )

    def decided(self, profile: Profile, plan: Plan, seconds: float) -> None:
        self._heading("Where to cut")
        self._out.print(
            f"{NAME} with random weights (no downloads), captured as one graph; every place where it can be cut "
            f"was measured on both sides of the link in {format_seconds(seconds)}:\n"
        )
        worth = replace(profile, model=NAME, cuts=tuple(_worth_showing(profile, plan)))
        self._out.print(profile_table(worth, plan, narrow=self._out.width < WIDE_COLUMNS))
        self._out.print(
            f"({len(profile.cuts) - len(worth.cuts)} cuts that ship no less than an earlier one are not shown)"
        )

    def training(self, name: str, trainer: HeadTrainer) -> TrainResult:
        self._heading(f"Training {TITLES[name]}")
        with TerminalProgress(self._out, trainer.epochs) as progress:
            return trainer.fit(progress)

    def compared(self, comparison: Comparison) -> None:
        self._heading("Side by side")
        split, none = comparison.runs
        table = Table("", "through the split", "without it", "", box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        faster, less = (
            f"[bold green]{comparison.speedup:.1f} x faster",
            f"[bold green]{comparison.bytes_ratio:.1f} x less",
        )
        table.add_row("measuring and planning, once", format_seconds(split.planning_seconds), "-")
        table.add_row("training", *(format_seconds(run.result.seconds) for run in comparison.runs))
        table.add_row("together", *(format_seconds(run.seconds) for run in comparison.runs), faster)
        table.add_row("link, measuring and sending the network", format_bytes(split.planning_bytes), "-")
        table.add_row("link, training", *(format_bytes(run.training_bytes) for run in comparison.runs))
        table.add_row("together", *(format_bytes(run.link_bytes) for run in comparison.runs), less)
        table.add_row("final loss", *(f"{run.result.final_loss:.5f}" for run in comparison.runs))
        table.add_row("validation accuracy", *(_accuracy(run.result) for run in comparison.runs))
        self._out.print(table)
        per_epoch = sum(none.result.epoch_seconds) / sum(split.result.epoch_seconds)
        chance, difference = 1 / comparison.settings.classes, comparison.loss_difference
        losses = "equal in every digit" if difference == 0 else f"equal to within {difference:.1g}"
        self._out.print(
            f"An epoch is {per_epoch:.1f} x faster, so longer training gains more. "
            f"The losses of the two runs are {losses}.\n"
            f"Accuracy is low because the network's weights are random (chance is {chance:.0%}).\n"
            "With real weights, and your own pictures:\n"
            "  [bold]hapi serve --root FOLDER[/]\n"
            "  [bold]hapi train --data FOLDER --model torchvision:resnet18 --server http://127.0.0.1:8470[/]",
            soft_wrap=True,  # commands are there to be copied
        )

    def _heading(self, title: str) -> None:
        self._chapter += 1
        self._out.print()
        self._out.rule(f"[bold]{self._chapter}. {title}", align="left")


def _accuracy(result: TrainResult) -> str:
    return "not validated" if result.accuracy is None else f"{result.accuracy:.1%}"


def _worth_showing(profile: Profile, plan: Plan) -> Iterator[CutCost]:
    """The cuts that ship less than every earlier one, and those of the plan."""
    chosen = {share.name for share in plan.cuts}
    fewest = float("inf")
    for cut in profile.cuts:
        if cut.out_bytes < fewest or cut.name in chosen or cut.name == OUTPUT:
            yield cut
        fewest = min(fewest, cut.out_bytes)
