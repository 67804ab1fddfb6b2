"""What the server learned of its prefixes, kept over restarts: one JSON file in the cache directory, written whole."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hapi.files import write_whole

log = logging.getLogger(__name__)

FORMAT = "hapi.learned/2"
ENTRIES = 1024
SAVE_SECONDS = 30.0
"""Least time between two writes."""


class Remembered:
    """JSON values by name, the least recently used forgotten first. Thread-safe. A damaged file is an empty one."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a path nothing is kept over a restart."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Any] = OrderedDict(self._read())
        self._saved = clock()
        self._is_dirty = False

    def get(self, name: str) -> Any:
        """The value, None if there is none."""
        with self._lock:
            if name in self._entries:
                self._entries.move_to_end(name)
            return self._entries.get(name)

    def put(self, name: str, value: Any) -> None:
        """Remembers a value; it is on disk before long, and after `save`."""
        with self._lock:
            self._entries[name] = value
            self._entries.move_to_end(name)
            while len(self._entries) > ENTRIES:
                self._entries.popitem(last=False)
            self._is_dirty = True
            due = self._clock() - self._saved >= SAVE_SECONDS
        if due:
            self.save()

    def save(self) -> None:
        """Writes the file if anything changed. A full disk costs the memory of this, not the server."""
        with self._lock:
            if self._path is None or not self._is_dirty:
                return
            data = json.dumps({"format": FORMAT, "entries": self._entries}).encode()
            self._is_dirty, self._saved = False, self._clock()
            try:
                write_whole(self._path, data)
            except OSError as error:
                log.warning("what was learned of prefixes could not be written to %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            document = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, prefixes are measured anew: %s", self._path, error)
            return {}
        entries = document.get("entries") if isinstance(document, dict) and document.get("format") == FORMAT else None
        return entries if isinstance(entries, dict) else {}
