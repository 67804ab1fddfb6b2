"""The README of a folder of kept results: what is there, from which command, machine, day and commit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench.headline import UNFINISHED, headline
from benchmarks.bench.kept import Kept, read_folder
from benchmarks.bench.machine import processors_of
from hapi.units import format_bytes

NAME = "README.md"
HEAD = """# Results that were kept

Each folder is what one run of `hapi bench SCENARIO --report FOLDER` wrote: `rows.json` (machine, versions, command,
remarks and every row), `index.html` (the same as a page that needs nothing else: open it in a browser) and its pictures
as PNG. A row that failed is kept, and its note says why.

`make results` runs everything anew, one scenario after the other, and writes this page; it takes hours.
`hapi bench published` puts the published figures beside these.
"""


def write_index(folder: Path) -> Path:
    """Writes README.md of a folder of results; answers its path. InputError if something there cannot be read."""
    path = folder / NAME
    path.write_text(index(read_folder(folder), folder), "utf-8")
    return path


def index(kept: Sequence[Kept], folder: Path) -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for one in kept:
        is_report = one.path.parent != folder
        failed = sum(row.failed for row in one.rows)
        count = f"{len(one.rows)} rows" + (f", {failed} failed" if failed else "")
        links = f"[rows]({_link(one.path, folder)}){_page(one.path, folder)}"
        facts = [f"`{one.command}`", _machine(one), f"{count}: {links}"]
        facts += [*([UNFINISHED] if one.is_unfinished else []), *headline(one.rows)]
        shown = _pictures(one) if is_report else []
        pictures = [f"![{path.stem}]({_link(path, folder)})" for path in shown]
        name = one.path.parent.name if is_report else one.path.stem
        parts.append("\n".join([f"## {name}", "", *(f"- {fact}" for fact in facts), "", *pictures]).rstrip() + "\n")
    if not kept:
        parts.append("Nothing is kept yet.\n")
    return "\n".join(parts)


def _pictures(kept: Kept) -> list[Path]:
    """Those of this run: in its folder may lie what an earlier one drew."""
    found = sorted(kept.path.parent.glob("*.png"))
    return [path for path in found if kept.pictures is None or path.stem in kept.pictures]


def _machine(kept: Kept) -> str:
    machine = kept.machine
    gpus = "".join(f", {gpu}" for gpu in machine.get("accelerators") or ())
    memory = format_bytes(machine["memory_bytes"]) if "memory_bytes" in machine else "?"
    day = str(machine.get("started", "?"))[:16].replace("T", " ")
    versions = machine.get("versions") or {}
    return (
        f"{day} UTC, commit {machine.get('revision') or '?'}, {processors_of(machine)}, {memory}{gpus}, "
        f"torch {versions.get('torch', '?')}"
    )


def _page(rows: Path, folder: Path) -> str:
    page = rows.parent / "index.html"
    return f", [page]({_link(page, folder)})" if rows.parent != folder and page.exists() else ""


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
