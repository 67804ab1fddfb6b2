"""Files that are written whole or not at all, and nothing left behind by a process that died."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DRAFT_SUFFIX = ".part"


class Draft:
    """A file that is being written. `commit` gives it its name; until then, and after `discard`, nobody sees it.

    Its lock tells another process that shares the folder that it is being written.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._file = _locked(folder)
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """Makes what was written readable under `path`."""
        self._file.flush()

    def commit(self, path: Path) -> None:
        """Moves the whole file to `path`, replacing what is there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
        self._file.close()

    def discard(self) -> None:
        """Removes it; does nothing after `commit`."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()


@contextmanager
def draft(folder: Path) -> Iterator[Draft]:
    """A draft that is discarded unless the block commits it."""
    file = Draft(folder)
    try:
        yield file
    finally:
        file.discard()


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old or the new file, never a part."""
    with draft(path.parent) as file:
        file.write(data)
        file.commit(path)


def _locked(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new file that nobody will take for a leftover. Before it was locked somebody may have, and removed it."""
    while True:
        path = folder / f".{secrets.token_hex(8)}{DRAFT_SUFFIX}"
        file = open(path, "xb")  # noqa: SIM115 - closed by commit and discard
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody else holds it but for a moment
        if path.exists():
            return path, file
        file.close()


def remove_leftovers(folder: Path) -> int:
    """Removes drafts that nobody writes any more, as far as this user may; answers how many."""
    removed = 0
    for path in folder.glob(f"*{DRAFT_SUFFIX}"):
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                removed += 1
        except OSError:  # it is being written, or gone, or not ours to remove
            continue
    return removed
