"""The web page of a report: what was found, its pictures, the numbers, and where they come from."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks.bench.headline import UNFINISHED, headline
from benchmarks.bench.machine import processors_of
from benchmarks.bench.rows import Row
from benchmarks.bench.table import Column, grouped
from hapi.units import format_bytes

if TYPE_CHECKING:
    from benchmarks.bench.run import Bench, Plot

COLUMNS_BESIDE, LETTERS_BESIDE = 8, 60
"""A table of more columns has longer notes below its rows: beside them they would be out of sight."""
Picture = tuple[str, bytes]
"""Its kind, as in image/KIND, and its bytes."""


def page(bench: Bench, pictures: Sequence[Picture]) -> str:
    """A whole HTML document, `pictures` being those of the bench's plots."""
    machine = bench.machine
    found = [*([UNFINISHED] if bench.is_unfinished else []), *bench.told, *headline(bench.shown_rows)]
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in found)
    figures = "".join(_figure(plot, *picture) for plot, picture in zip(bench.plots, pictures, strict=True))
    tables = "".join(_table(title, rows, bench.columns) for title, rows in grouped(bench.shown_rows, bench.table_by))
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in bench.remarks)
    known = f'<section class="remarks"><h2>To be known</h2><ul>{remarks}</ul></section>' if remarks else ""
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
<div class="said">{said}</div>
<p class="quiet">{escape(_summary(machine))}</p>
<pre>{escape(str(machine.get("command", "")))}</pre>
</header>
<main>
{figures}
{tables}
{known}
<section><h2>Machine and versions</h2><table class="facts">{_facts(machine)}</table></section>
<p class="quiet">All numbers, also those not shown, are in <a href="rows.json">rows.json</a>.</p>
</main>
</body>
</html>
"""


def _figure(plot: Plot, kind: str, data: bytes) -> str:
    # as an image, not inline: ids inside of several SVGs would meet in one page
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    title = escape(plot.title)
    return f'<figure><h2>{title}</h2><img alt="{title}" src="{source}">{caption}</figure>'


def _summary(machine: dict[str, Any]) -> str:
    where = f"{processors_of(machine)}, {format_bytes(machine['memory_bytes'])}"
    gpus = "".join(f", {gpu}" for gpu in machine.get("accelerators", ()))
    started = str(machine.get("started", "")).replace("T", " ").removesuffix("+00:00")
    return f"Run on {started} UTC on {where}{gpus}, revision {machine.get('revision')}."


def _facts(machine: dict[str, Any]) -> str:
    facts = {**machine, **machine.get("versions", {}), "memory": format_bytes(machine["memory_bytes"])}
    hidden = ("versions", "memory_bytes", "command")
    return "".join(
        f"<tr><th>{escape(str(key)).replace('_', ' ')}</th><td>{escape(_text(value))}</td></tr>"
        for key, value in facts.items()
        if key not in hidden and value not in (None, [])
    )


def _text(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    return ", ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in value)


def _table(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    shown = [column for column in columns if any(column.cell(row) != "-" for row in rows)]
    head = "".join(f'<th class="{_side(column)}">{escape(column.title)}</th>' for column in shown)
    is_mixed = len({row.system for row in rows}) > 1  # else there is nothing to tell ours from
    failed, longest = any(row.failed for row in rows), max((len(row.note) for row in rows), default=0)
    noted, is_below = longest > 0, len(shown) > COLUMNS_BESIDE and longest > LETTERS_BESIDE
    head = ("<th></th>" if failed else "") + head + ('<th class="text">note</th>' if noted and not is_below else "")
    body = []
    for row in rows:
        mark = f"<td>{'<span>failed</span>' if row.failed else ''}</td>" if failed else ""
        cells = "".join(f'<td class="{_side(column)}">{escape(column.cell(row))}</td>' for column in shown)
        note = f'<td class="note">{escape(row.note)}</td>' if noted and not is_below else ""
        kind = "failed" if row.failed else "ours" if row.system == "mix" and is_mixed else ""
        if is_below and row.note:
            kind += " noted"
        body.append(f'<tr class="{kind}">{mark}{cells}{note}</tr>')
        if is_below and row.note:
            width = len(shown) + failed
            body.append(f'<tr class="{kind} below"><td class="note" colspan="{width}">{escape(row.note)}</td></tr>')
    above = f"<h2>{escape(title)}</h2>" if title else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<section class="wide">{above}<div>{table}</div></section>'


def _side(column: Column) -> str:
    return "text" if column.is_text else "number"


_STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --quiet: #66737f; --line: #e4e8ec; --ours: #eaf5f0; --paper: #f6f8f9;
  --card: #fff; --code: #22303c; --code-ink: #eef2f5; --wrong: #a8321f; --wrong-card: #fbeeeb; --link: #2b6cb0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe6ec; --quiet: #93a1ad; --line: #2c3742; --ours: #17372c; --paper: #11171d; --card: #1a222a;
    --code: #0b1015; --code-ink: #dfe6ec; --wrong: #ef8f7e; --wrong-card: #3a211d; --link: #7fb3e6; }
  figure img { filter: invert(.89) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
header { padding-bottom: 0; }
header h1 { margin: 0 0 .4rem; font-size: 1.9rem; letter-spacing: -.01em; line-height: 1.2; }
.said p { margin: 0 0 .3rem; font-size: 1.15rem; max-width: 60rem; }
.quiet, figcaption { color: var(--quiet); }
a { color: var(--link); }
pre { background: var(--code); color: var(--code-ink); padding: .7rem 1rem; border-radius: 8px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
figure, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem;
  margin: 0 0 1.4rem; }
.wide > div { overflow-x: auto; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .6rem; font-size: .9rem; max-width: 60rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.wide table { width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { color: var(--quiet); font-weight: 600; }
tbody tr:hover td { background: var(--paper); }
.text { text-align: left; } .number { text-align: right; }
td.text { white-space: normal; max-width: 22rem; }
.note { white-space: normal; min-width: 16rem; color: var(--quiet); font-size: .85rem; text-align: left; }
tr.ours td { background: var(--ours); font-weight: 600; } tr.ours td.note { font-weight: 400; }
tr.noted:not(.below) td { border-bottom: none; } tr.below td { padding-top: 0; overflow-wrap: anywhere; }
tr.failed td { color: var(--wrong); background: var(--wrong-card); }
tr.failed span { border: 1px solid var(--wrong); border-radius: 99px; padding: 0 .5rem; font-size: .75rem; }
.facts th { text-align: left; } .facts td { white-space: normal; }
ul { margin: 0; padding-left: 1.2rem; } li { margin-bottom: .25rem; overflow-wrap: anywhere; }
"""
