"""The report of a run: one web page without anything from outside, and the rows as JSON beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench.kept import ROWS
from hapi.errors import InputError
from hapi.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench.rows import Row
    from benchmarks.bench.run import Bench, Plot

INK, QUIET, GRID = "#22303c", "#5c6873", "#e4e8ec"
PALE = "#b9c2ca"
"""For areas that matter less: the page turns light and dark around in a dark scheme, where GRID is hardly seen."""
PALETTE = {
    "plain": "#8d99a6",
    "none": "#c98a3c",
    "all": "#8a4fbf",
    "static": "#b36a9e",
    "paper": "#b3541e",
    "paper-v1": "#d08a63",
    "single": "#2b6cb0",
    "mix": "#2f8f6b",
    "ours": "#2f8f6b",
    "s3torchconnector": "#4f7cac",
    "webdataset": "#c05746",
    "ray": "#6b8f3a",
    "precompute": "#9a6fb0",
    "whole": "#c05746",
    "paper-lp": "#b08d2f",
    "published": "#5c6873",
}
"""Systems that appear in several scenarios have one colour everywhere."""
FIXED = "fixed-"
SHADES = {2: "#d3deeb", 4: "#b9cbe0", 8: "#93b0d1", 16: "#6c94c0", 32: "#4777ab", 64: "#2b5688"}
"""Fixed batches, the larger the darker."""
MOST_SVG_BYTES = 200_000
"""A plot of more points is shown as pixels."""
OTHERS = ("#4f7cac", "#c05746", "#6b8f3a", "#9a6fb0", "#b08d2f", "#3a8f8f", "#7a5c45", "#5c6b7a")


def colour(system: str, place: int = 0) -> str:
    """Of a system in every plot; `place` chooses among the rest for others."""
    batch = system.removeprefix(FIXED)
    if batch != system and batch.isdigit():
        return SHADES[min(SHADES, key=lambda known: abs(known - int(batch)))]
    return PALETTE.get(system, OTHERS[place % len(OTHERS)])


def check_folder(folder: Path) -> None:
    """Makes the folder; InputError if it cannot be one, or if matplotlib is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--report {folder}: not a folder that can be written ({error.strerror}).") from error
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--report draws with matplotlib: pip install 'hapi-split[plot]'.") from error


def write_report(bench: Bench, folder: Path) -> Path:
    """Writes index.html, rows.json and the plots as PNG; answers the page's path.

    The page needs nothing beside it: its pictures are inside. Together they are small enough to be kept in git.
    """
    from benchmarks.bench.page import page

    folder.mkdir(parents=True, exist_ok=True)
    document = {**bench.to_json(), "pictures": [plot.name for plot in bench.plots]}  # others are an earlier run's
    write_whole(folder / ROWS, json.dumps(document, indent=1).encode())  # earlier rows may have taken hours
    pictures = []
    for plot in bench.plots:
        png, svg = draw(plot, bench.rows)
        (folder / f"{plot.name}.png").write_bytes(png)
        pictures.append(("svg+xml", svg) if len(svg) <= MOST_SVG_BYTES else ("png", png))
    path = folder / "index.html"
    path.write_text(page(bench, pictures), "utf-8")
    return path


def draw(plot: Plot, rows: Sequence[Row]) -> tuple[bytes, bytes]:
    """(PNG, SVG) of a plot."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": QUIET,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": GRID,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "legend.frameon": False,
        "svg.hashsalt": "hapi",
    }
    with rc_context(style):
        figure = Figure(figsize=plot.size, layout="constrained")
        FigureCanvasAgg(figure)
        plot.draw(figure, rows)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=110, facecolor="white")
        figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None})
    return smaller(png.getvalue()), svg.getvalue()


def smaller(png: bytes) -> bytes:
    """A picture of few colours as one with a palette of 256: a third of the bytes."""
    from PIL import Image

    target = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256).save(target, "PNG", optimize=True)
    return target.getvalue()
