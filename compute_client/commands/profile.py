"""`hapi profile`: what every cut of a network costs."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from compute_client.commands import options
from hapi.console import console, emit, say
from hapi.units import parse_bandwidth
from profiler.commands import EPOCHS, check_plot, plan_of, show


def profile_command(
    model: str = typer.Argument(help="torchvision:NAME, hf:PATH_OR_NAME or package.module:factory"),
    data: str = typer.Option(..., help="The dataset's address, as the server (or this machine) sees it."),
    weights: str = typer.Option("DEFAULT", help="DEFAULT, none, or a safetensors file."),
    server: str | None = typer.Option(None, help="A storage server's address; without one, this machine plays both."),
    token: str | None = typer.Option(None, help="For the server; default: the environment's HAPI_TOKEN."),
    bandwidth: str | None = typer.Option(
        None, help="Of the link, as in 300mbit or 1Gbit; default: measured, or 1Gbit without a server."
    ),
    batch_size: int = typer.Option(256, min=1, help="Of the training that is planned."),
    samples: int | None = typer.Option(None, min=1, help="Of the training that is planned; default: all of the data."),
    epochs: int | None = EPOCHS,
    device: str = typer.Option("cpu", help="The client's, as in cpu or cuda."),
    codec: str = typer.Option("float32", help="Of features on the wire; or several to choose among: float32,int8."),
    compression: str = typer.Option(
        "auto", help="Of features on the wire: none, lz4, zstd, packed, or auto: if it pays."
    ),
    streams: bool = typer.Option(
        False, "--streams", help="Also run a stream over each cut that could be the best, with both tiers at work."
    ),
    plot: Path | None = typer.Option(None, help="Draw the profile into this file (.png, .svg or .pdf)."),
    as_json: bool = options.JSON,
) -> None:
    """Measure what every cut of a network costs on this machine (and on a server), and show it.

    Each tier is timed alone. --streams has both work as in a job, for some ten seconds a cut, or a minute or more of a
    slow network, on a server that has nothing else to do and keeps no features (hapi serve --feature-cache-bytes 0):
    that tells what they share, as on one machine, and names the best single cut more surely.
    """
    out = console(as_json)
    link_rate = None if bandwidth is None else parse_bandwidth(bandwidth)
    check_plot(plot)
    from compute_client.streams import contending
    from profiler import profile
    from profiler.calibration import about_streams

    with out.status("measuring: a few seconds for a small network, longer for a large one ..."):
        result = profile(
            model,
            data,
            weights=weights,
            server=server,
            token=token,
            bandwidth=link_rate,
            batch_size=batch_size,
            samples=samples,
            epochs=epochs or 1,
            device=device,
            codecs=[name.strip() for name in codec.split(",")],
            compression=compression,
            streams=contending if streams else None,
        )
    if server is None:
        say(out, "No --server: this machine was measured as both tiers, so the server's times are this machine's.")
    if streams:
        say(out, escape(about_streams(result)))
    chosen = plan_of(out, result)
    show(out, result, chosen)
    if plot is not None:
        from profiler import draw_profile

        say(out, f"drawn: {escape(str(draw_profile(result, plot, chosen)))}")
    if as_json:
        emit(result.to_json())
