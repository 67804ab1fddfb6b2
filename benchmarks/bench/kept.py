"""Results that were kept: the JSON documents of earlier runs, read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench.rows import Row, row_from_json
from hapi.errors import InputError

ROWS = "rows.json"


@dataclass(frozen=True)
class Kept:
    """One document of `hapi bench SCENARIO --json`, or the rows.json of its report."""

    path: Path
    scenario: str
    machine: Mapping[str, Any]
    remarks: tuple[str, ...]
    rows: tuple[Row, ...]
    is_unfinished: bool = False
    """Whether the run was ended early: rows may be missing."""
    pictures: tuple[str, ...] | None = None
    """Names of those that the run drew; None if it does not say."""

    @property
    def command(self) -> str:
        """As it was typed."""
        return str(self.machine.get("command", ""))


def read_folder(folder: Path) -> list[Kept]:
    """The documents `*.json` of a folder and the rows.json of reports right below it, by path.

    InputError for a folder that is none, and for a JSON file that is no such document.
    """
    if not folder.is_dir():
        raise InputError(
            f"--results {folder}: not a folder. Name one with the documents of hapi bench SCENARIO --json."
        )
    return [read(path) for path in sorted([*folder.glob("*.json"), *folder.glob(f"*/{ROWS}")])]


def read(path: Path) -> Kept:
    """One document; InputError says what is wrong with it."""
    try:
        document = json.loads(path.read_text("utf-8"))
        machine, rows = document["machine"], document["rows"]
        if not isinstance(machine, Mapping) or not isinstance(rows, Sequence):
            raise TypeError("machine must be an object and rows a list")
        remarks = tuple(str(remark) for remark in document.get("remarks", ()))
        pictures = document.get("pictures")
        return Kept(
            path,
            str(document["scenario"]),
            machine,
            remarks,
            tuple(map(row_from_json, rows)),
            is_unfinished=bool(document.get("interrupted")),
            pictures=None if pictures is None else tuple(map(str, pictures)),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a document of hapi bench SCENARIO --json ({told}). Take it away.") from error


def rows_of(kept: Iterable[Kept], scenario: str, *, failed: bool = False) -> list[Row]:
    """All rows of a scenario that did not fail (with `failed` those as well), from all its documents, the oldest run
    first.

    `run` of each is the document: only rows of one run may be put in a ratio.
    """
    mine = sorted(
        (one for one in kept if one.scenario == scenario), key=lambda one: str(one.machine.get("started", ""))
    )
    return [row.filled(run=str(one.path)) for one in mine for row in one.rows if failed or not row.failed]


def newest(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Of rows that agree in these keys only those of the latest run, see `rows_of`."""
    latest = {tuple(row.get(key) for key in keys): row.get("run") for row in rows}
    return [row for row in rows if latest[tuple(row.get(key) for key in keys)] == row.get("run")]
