"""The report of a run: one web page without anything from outside, and the rows as JSON beside it."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench.table import Column
from hapi.errors import InputError
from hapi.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench.rows import Row
    from benchmarks.bench.run import Bench, Plot

INK, QUIET, GRID = "#22303c", "#7b8794", "#e4e8ec"
PALETTE = {
    "plain": "#8d99a6",
    "none": "#c98a3c",
    "all": "#8a4fbf",
    "static": "#b36a9e",
    "paper": "#b3541e",
    "paper-v1": "#d08a63",
    "single": "#2b6cb0",
    "mix": "#2f8f6b",
}
"""Systems that appear in several scenarios have one colour everywhere."""
OTHERS = ("#4f7cac", "#c05746", "#6b8f3a", "#9a6fb0", "#b08d2f", "#3a8f8f", "#7a5c45", "#5c6b7a")


def colour(system: str, place: int = 0) -> str:
    """Of a system in every plot; `place` chooses among the rest for others."""
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
    """Writes index.html, rows.json and the plots as PNG; answers the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(bench.to_json(), indent=1), "utf-8")
    figures = []
    for plot in bench.plots:
        png, svg = draw(plot, bench.rows)
        (folder / f"{plot.name}.png").write_bytes(png)
        figures.append(_figure(plot, svg))
    page = folder / "index.html"
    page.write_text(_page(bench, figures), "utf-8")
    return page


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
    return png.getvalue(), svg.getvalue()


def _figure(plot: Plot, svg: bytes) -> str:
    # as an image, not inline: ids inside of several SVGs would meet in one page
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    title = escape(plot.title)
    return f'<figure><h2>{title}</h2><img alt="{title}" src="{source}">{caption}</figure>'


def _page(bench: Bench, figures: Sequence[str]) -> str:
    machine = bench.machine
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in bench.remarks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(bench.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(bench.title)}</h1>
<p>{escape(_summary(machine))}</p>
<pre>{escape(str(machine.get("command", "")))}</pre>
</header>
<main>
{_table(bench.rows, bench.columns)}
{f'<section class="remarks"><h2>To be known</h2><ul>{remarks}</ul></section>' if remarks else ""}
{"".join(figures)}
<section><h2>Machine and versions</h2><table class="facts">{_facts(machine)}</table></section>
<p class="quiet">All numbers, also those not shown, are in <a href="rows.json">rows.json</a>.</p>
</main>
</body>
</html>
"""


def _summary(machine: dict[str, Any]) -> str:
    where = f"{machine.get('cpus_usable')} processors ({machine.get('cpu')}), {format_bytes(machine['memory_bytes'])}"
    gpus = "".join(f", {gpu}" for gpu in machine.get("accelerators", ()))
    return f"Measured {machine.get('started')} on {where}{gpus}."


def _facts(machine: dict[str, Any]) -> str:
    facts = {**machine, **machine.get("versions", {}), "memory": format_bytes(machine["memory_bytes"])}
    hidden = ("versions", "memory_bytes", "command")
    return "".join(
        f"<tr><th>{escape(str(key)).replace('_', ' ')}</th><td>{escape(_text(value))}</td></tr>"
        for key, value in facts.items()
        if key not in hidden and value not in (None, [])
    )


def _text(value: Any) -> str:
    return ", ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in value) if isinstance(
        value, list | tuple
    ) else str(value)  # fmt: skip


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    shown = [column for column in columns if any(column.cell(row) != "-" for row in rows)]
    head = "".join(f'<th class="{_side(column)}">{escape(column.title)}</th>' for column in shown)
    noted = any(row.note or row.failed for row in rows)
    body = []
    for row in rows:
        cells = "".join(f'<td class="{_side(column)}">{escape(column.cell(row))}</td>' for column in shown)
        note = f'<td class="note">{escape(row.note)}</td>' if noted else ""
        kind = "failed" if row.failed else "ours" if row.system == "mix" else ""
        body.append(f'<tr class="{kind}">{cells}{note}</tr>')
    last = '<th class="text">note</th>' if noted else ""
    return f'<div class="wide"><table><thead><tr>{head}{last}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _side(column: Column) -> str:
    return "text" if column.is_text else "number"


_STYLE = """
:root { color-scheme: light; --ink: #22303c; --quiet: #66737f; --line: #e4e8ec; --ours: #eaf5f0; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8f9; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 70rem; margin: 0 auto; padding: 1.5rem; }
header h1 { margin: 0 0 .3rem; font-size: 1.9rem; letter-spacing: -.01em; }
header p, .quiet, figcaption { color: var(--quiet); }
pre { background: #22303c; color: #eef2f5; padding: .7rem 1rem; border-radius: 8px; overflow-x: auto;
  font-size: .85rem; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
figure, section, .wide { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem;
  margin: 0 0 1.4rem; }
.wide { overflow-x: auto; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.wide table { width: 100%; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
.text { text-align: left; } .number { text-align: right; }
.note { white-space: normal; min-width: 16rem; color: var(--quiet); font-size: .85rem; }
tr.ours td { background: var(--ours); font-weight: 600; } tr.ours td.note { font-weight: 400; }
tr.failed td { color: #a8321f; }
.facts th { text-align: left; vertical-align: top; } .facts td { white-space: normal; }
ul { margin: 0; padding-left: 1.2rem; }
"""
