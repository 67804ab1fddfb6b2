"""Measurements kept between runs, so that a job that comes again begins at once: one small JSON file for each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hapi.errors import HapiError
from hapi.files import remove_leftovers, write_whole
from hapi.machine import processors

log = logging.getLogger(__name__)

MAX_AGE_SECONDS = 30 * 24 * 3600.0
"""Older ones are made again: machines change."""
BUSIER = 0.5
"""Waiting processes per processor by which the machine must have been busier for a measurement to be made again."""
MAX_BYTES = 4 * 2**20
"""Of one; a larger file is none."""
MOST_KEPT, MOST_BYTES_KEPT = 1000, 64 * 2**20
"""So many are kept, of so many bytes in all; the oldest make room."""

Value = TypeVar("Value")


def default_folder() -> Path:
    """Where this user's measurements are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hapi" / "measurements"


def load_per_processor() -> float:
    """Processes that ran or waited over the last minute, per processor; 0 where the system does not say."""
    try:
        return os.getloadavg()[0] / processors()
    except (AttributeError, OSError):
        return 0.0


class Measurements:
    """A folder of measurements by what they depend on. May be shared by threads and processes.

    A measurement is made again when it is old, when it cannot be read, or when the machine was much busier then than it
    is now: its times would be too long. A folder that cannot be written costs the memory, never the measurement.
    MOST_KEPT are kept, of MOST_BYTES_KEPT in all, and none that is too old to be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        load: Callable[[], float] = load_per_processor,
    ) -> None:
        self._folder, self._clock, self._load = folder, clock, load

    def get(
        self,
        key: Mapping[str, Any],
        measure: Callable[[], Value],
        *,
        to_json: Callable[[Value], Any],
        from_json: Callable[[Any], Value],
        refresh: bool = False,
    ) -> tuple[Value, bool]:
        """The measurement and whether it was remembered. `key` is all that it depends on, as JSON."""
        name = json.dumps(key, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"
        load = self._load()
        if not refresh:
            document = self._read(path, name, load)
            if document is not None:
                try:
                    return from_json(document), True
                except (HapiError, KeyError, TypeError, ValueError) as error:
                    log.info("measurement %s is made again: %s", path, error)
        value = measure()
        self._write(path, {"key": name, "at": self._clock(), "load": load, "value": to_json(value)})
        return value, False

    def _read(self, path: Path, name: str, load: float) -> Any | None:
        try:
            if path.stat().st_size > MAX_BYTES:
                return None
            document = json.loads(path.read_bytes())
            fresh = 0 <= self._clock() - document["at"] <= MAX_AGE_SECONDS
            comparable = document["load"] <= load + BUSIER
            return document["value"] if document["key"] == name and fresh and comparable else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # there is none, or it is damaged: it is made again

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(document).encode())
            self._make_room()
        except OSError as error:
            log.info("measurements in %s: %s", self._folder, error)

    def _make_room(self) -> None:
        """Removes what is too old to be used or beyond the bounds, and drafts of processes that died.

        What another process writes anew meanwhile may go with it: it is measured again then.
        """
        remove_leftovers(self._folder)
        kept = []
        for path in self._folder.glob("*.json"):
            with suppress(FileNotFoundError):
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        room = MOST_BYTES_KEPT
        for number, (written, size, path) in enumerate(sorted(kept, reverse=True)):
            room -= size
            if number >= MOST_KEPT or room < 0 or self._clock() - written > MAX_AGE_SECONDS:
                path.unlink(missing_ok=True)
