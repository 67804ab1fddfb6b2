"""A memory control group for a child process: a limit, what it took at its peak, and whether the kernel killed in it.

Version 1 (/sys/fs/cgroup/memory) and version 2. Needs root, or a delegated hierarchy given as `mount`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hapi.errors import HapiError

MOUNT = Path("/sys/fs/cgroup")
EMPTY_SECONDS = 10.0
"""How long a group may take to become empty after its processes ended."""


class NoControlGroupError(HapiError):
    """Memory control groups cannot be made here."""

    kind = "no-control-group"


@dataclass(frozen=True)
class MemoryGroup:
    """One group. Sizes in bytes."""

    path: Path
    version: int

    def limit(self, count: int) -> None:
        """Sets the limit; swap, where there is any, does not extend it."""
        self._write("memory.max" if self.version == 2 else "memory.limit_in_bytes", count)
        with contextlib.suppress(OSError):
            self._write("memory.swap.max", 0) if self.version == 2 else self._write("memory.swappiness", 0)

    @property
    def peak_bytes(self) -> int:
        """Most that was charged at once, file cache included."""
        return self._number("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")

    @property
    def anonymous_bytes(self) -> int:
        """What is charged now and is no file's: the kernel cannot take it back, and kills for it."""
        return self._stat("anon" if self.version == 2 else "total_rss")

    @property
    def kills(self) -> int:
        """Processes that the kernel killed for memory."""
        file, key = ("memory.events", "oom_kill") if self.version == 2 else ("memory.oom_control", "oom_kill")
        return self._entry(file, key)

    def command(self) -> list[str]:
        """What goes before a command so that it runs in this group, as the same process."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")]

    def _stat(self, key: str) -> int:
        return self._entry("memory.stat", key)

    def _entry(self, file: str, key: str) -> int:
        for line in (self.path / file).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        return 0

    def _number(self, file: str) -> int:
        return int((self.path / file).read_text())

    def _write(self, file: str, value: int) -> None:
        (self.path / file).write_text(str(value))


@contextlib.contextmanager
def memory_group(limit_bytes: int | None = None, *, mount: Path = MOUNT) -> Iterator[MemoryGroup]:
    """A new group below the mount, removed at the end; its processes must have ended by then.

    NoControlGroupError where it cannot be made.
    """
    version = 2 if (mount / "cgroup.controllers").exists() else 1
    base = mount if version == 2 else mount / "memory"
    group = MemoryGroup(base / f"hapi-bench-{os.getpid()}-{time.monotonic_ns()}", version)
    try:
        if version == 2:
            with contextlib.suppress(OSError):
                (base / "cgroup.subtree_control").write_text("+memory")
        group.path.mkdir()
        if limit_bytes is not None:
            group.limit(limit_bytes)
    except OSError as error:
        with contextlib.suppress(OSError):
            group.path.rmdir()
        raise NoControlGroupError(
            f"no memory control group can be made in {base} ({error.strerror}). Run this as root on Linux."
        ) from error
    try:
        yield group
    finally:
        _remove(group.path)


def _remove(path: Path) -> None:
    until = time.monotonic() + EMPTY_SECONDS
    while True:
        try:
            path.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
