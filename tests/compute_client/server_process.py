"""`hapi serve` as its users start it, in a process that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class ServerProcess:
    """Starts on construction; `url` waits until it is ready. A context manager that kills what is left."""

    def __init__(
        self, root: Path, cache: Path, *, port: int = 0, tokens: Path | None = None, options: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, "-m", "hapi.cli", "serve", "--root", str(root), "--port", str(port), "--json"]
        command += ["--cache-dir", str(cache), "--threads", "1", "--workers", "1", "--log-level", "error"]
        command += ["--memory-budget", "1GB", *(["--tokens", str(tokens)] if tokens else []), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._ready: dict | None = None

    @property
    def ready(self) -> dict:
        if self._ready is None:
            assert self._process.stdout is not None
            self._ready = json.loads(self._process.stdout.readline())
        return self._ready

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def kill(self) -> None:
        """As a power failure would."""
        self._process.kill()
        self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
