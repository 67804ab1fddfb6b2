"""Compiled programs on disk: made on this machine by this user, found again after a restart.

A compiled program is native code, and loading it is running it. So the folder belongs to this user and nobody else may
write to it (mode 0700, checked each time), the files are only ever written by this user's own compiler process, and
nothing that came from the network is ever among them: a server compiles graphs of allowed operations by itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hapi.engine.precision import Precision, processor_flags
from hapi.errors import InputError
from hapi.files import remove_leftovers, write_whole
from hapi.model import Program

VERSION = 6
"""Of what is compiled and how; older artefacts are not looked at."""
MOST_BYTES = 16 * 2**30
SUFFIX = ".so"
MAKING = ".making-"
HELD = "held"
"""Folders in which programs are compiled begin so; each has a file that who compiles there holds a lock on."""


def default_folder() -> Path:
    """Below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hapi" / "engine"


@dataclass(frozen=True)
class Compiled:
    """A compiled program on disk, and what making it took and brought.

    Attributes:
        seconds: that compiling took.
        nodes: of the program.
        gain: how many times faster than eager, measured when it was made.
        error: of its outputs on the probe, relative to the outputs' scale.
    """

    seconds: float
    nodes: int
    gain: float
    error: float


class Shelf:
    """A folder of compiled programs, by what they were made from and for. Several processes may share it."""

    def __init__(self, folder: Path | None = None, max_bytes: int = MOST_BYTES) -> None:
        """Makes the folder; InputError if it is not this user's alone."""
        self.folder = folder or default_folder()
        self._max_bytes = max_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder of compiled programs {self.folder}: {error.strerror}. Choose another.") from error
        self.check()
        remove_leftovers(self.folder)
        for path in self.folder.glob(f"{MAKING}*"):
            _remove_unless_held(path)

    def check(self) -> None:
        """InputError if anybody but this user could have put a file here."""
        found = os.stat(self.folder)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(
                f"folder of compiled programs {self.folder}: others can write to it, and what lies there is run. "
                f"Give it to this user alone: chmod 700 {self.folder}, or run eager."
            )

    def path(self, key: str) -> Path:
        """Where the compiled program of a key lies or will lie."""
        return self.folder / f"{key}{SUFFIX}"

    def find(self, key: str) -> Compiled | None:
        """What is known of a compiled program, if it is there, whole, and this user's own; notes the use."""
        found = self._read(key)
        if found is not None:
            os.utime(self.path(key))
        return found

    def _read(self, key: str) -> Compiled | None:
        path = self.path(key)
        try:
            self.check()
            said = json.loads(path.with_suffix(".json").read_text())
            is_own = path.stat().st_uid == os.geteuid() and path.stat().st_size == said.pop("bytes")
            compiled = Compiled(**said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return compiled if is_own else None

    def keep(self, key: str, compiled: Compiled) -> None:
        """Notes that the program at `path(key)` is whole; the least recently used ones make room."""
        path = self.path(key)
        write_whole(path.with_suffix(".json"), json.dumps(asdict(compiled) | {"bytes": path.stat().st_size}).encode())
        self._make_room(path)

    @contextmanager
    def making(self) -> Iterator[Path]:
        """A folder in which to make something for the shelf. It is gone after the block; if this process ends before
        that, or others still write there, whoever opens the shelf next removes it."""
        made = tempfile.TemporaryDirectory(dir=self.folder, prefix=MAKING, ignore_cleanup_errors=True)
        with made as name, open(Path(name) / HELD, "xb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)

    def drop(self, key: str) -> None:
        """Forgets a compiled program; processes that run it go on with their mapping of it."""
        for suffix in (".json", SUFFIX):
            self.path(key).with_suffix(suffix).unlink(missing_ok=True)

    def all(self) -> list[Compiled]:
        """Everything that is known here, for estimates."""
        found = (self._read(path.stem) for path in self.folder.glob(f"*{SUFFIX}"))
        return [compiled for compiled in found if compiled is not None]

    def _make_room(self, newest: Path) -> None:
        files = {path: path.stat() for path in self.folder.glob(f"*{SUFFIX}")}
        total = sum(found.st_size for found in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime):
            if total <= self._max_bytes or path == newest:
                return
            total -= files[path].st_size
            self.drop(path.stem)


def _remove_unless_held(folder: Path) -> None:
    try:
        with open(folder / HELD, "r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # of an earlier version, which held nothing
        pass
    except BlockingIOError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def key_of(program: Program, precision: Precision, threads: int) -> str:
    """What a compiled program depends on: the graph, the part of it, the numeric mode, PyTorch, and the machine."""
    said: Mapping[str, object] = {
        "version": VERSION,
        "graph": program.graph.digest,
        "inputs": program.input_names,
        "outputs": program.output_names,
        "precision": precision,
        "threads": threads if program.device.type == "cpu" else None,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(program.device) if program.device.type == "cuda" else "cpu",
        "machine": [platform.machine(), sorted(processor_flags())],
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
