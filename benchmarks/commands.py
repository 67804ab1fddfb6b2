"""Commands of the benchmarks: the demo and the bench."""

from __future__ import annotations

import typer

from benchmarks.scenarios import Scenarios
from hapi.console import console, emit
from hapi.units import parse_bandwidth


def register(app: typer.Typer) -> None:
    """Adds this room's commands to `app`."""
    app.command()(demo)
    bench = typer.Typer(cls=Scenarios, no_args_is_help=True, help="Measure HAPI beside other systems, on this machine.")
    bench.callback()(_bench)
    app.add_typer(bench, name="bench")


def _bench() -> None:
    """Measure HAPI beside other systems, on this machine. Each scenario prints a table, JSON, and a report."""


def demo(
    images: int = typer.Option(240, min=20, help="Synthetic photographs to make."),
    epochs: int = typer.Option(5, min=1, help="Passes over the training part, for each of the two runs."),
    bandwidth: str = typer.Option("20mbit", help="Of the link between the storage server and the training process."),
    seed: int = typer.Option(0, min=0, help="Of pictures, weights, order and head."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document; the story goes to standard error."),
) -> None:
    """The whole story on this machine: data, server, profile, plan, training through the split and without it."""
    rate = parse_bandwidth(bandwidth)
    from benchmarks.bench.ending import as_by_ctrl_c
    from benchmarks.demo.screens import TerminalScreens
    from benchmarks.demo.story import DemoSettings, tell

    settings = DemoSettings(images=images, epochs=epochs, bandwidth_bits_per_s=rate, seed=seed)
    with as_by_ctrl_c():  # its server is a process of its own
        comparison = tell(settings, TerminalScreens(console(as_json)))
    if as_json:
        emit(comparison.to_json())
