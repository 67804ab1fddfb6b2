"""What is kept in benchmarks/results can be read, says where it comes from, and is small."""

from __future__ import annotations

from pathlib import Path

import benchmarks
from benchmarks.bench.index import NAME, index
from benchmarks.bench.kept import read_folder

RESULTS = Path(benchmarks.__file__).parent / "results"
MOST_PICTURE_BYTES = 200_000
MOST_FILE_BYTES = 4_000_000


def test_every_kept_result_has_a_machine_and_rows_and_no_unexplained_failure() -> None:
    for kept in read_folder(RESULTS):
        assert kept.rows, f"{kept.path}: no rows"
        assert {"cpu", "cpus_usable", "command", "revision", "started", "versions"} <= set(kept.machine), kept.path
        for row in kept.rows:
            assert row.note or row.get("holds") or not row.failed, (
                f"{kept.path}: {row.system} {row.model} failed, and nothing says why"
            )


def test_kept_files_are_small() -> None:
    for path in RESULTS.rglob("*"):
        if path.is_file():
            most = MOST_PICTURE_BYTES if path.suffix in (".png", ".svg") else MOST_FILE_BYTES
            assert path.stat().st_size <= most, f"{path}: {path.stat().st_size} bytes"


def test_the_readme_tells_of_what_is_there() -> None:
    assert (RESULTS / NAME).read_text("utf-8") == index(read_folder(RESULTS), RESULTS)
