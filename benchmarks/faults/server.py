"""A storage server that can be killed and comes back: at the same address, with what it kept on disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.localserver import is_alive, local_server
from benchmarks.testbed.services import Store
from benchmarks.testbed.testbed import Testbed

OPTIONS = ("--feature-cache-bytes", "0", "--engine", "eager")


class KillableServer:
    """Starts with its context. `url` is its address for the compute host; every tenant has a token."""

    def __init__(self, bed: Testbed, store: Store, tenants: Sequence[str]) -> None:
        self._bed, self._store = bed, store
        self._folder = Path(tempfile.mkdtemp(prefix="server-", dir=bed.folder))
        self._tokens = {tenant: secrets.token_urlsafe(24) for tenant in tenants}
        file = self._folder / "tokens.toml"
        file.touch(mode=0o600)
        file.write_text("".join(f'[tenants.{name}]\ntoken = "{token}"\n' for name, token in self._tokens.items()))
        self._running = contextlib.ExitStack()
        self._pid: int | None = None
        self._port = 0
        self.url = ""

    def start(self) -> None:
        """Starts it, unless it runs; one that ended by itself, too."""
        if self._pid is not None and is_alive(self._pid):
            return
        self._running.close()
        where = ["--host", self._bed.storage.address, "--port", str(self._port)]
        kept = ["--cache-dir", str(self._folder / "cache"), "--tokens", str(self._folder / "tokens.toml")]
        server = self._running.enter_context(
            local_server(
                self._store.uri,
                options=[*OPTIONS, *where, *kept],
                environment=self._bed.storage.environment(self._store.for_storage),
                prefix=self._bed.storage.prefix,
            )
        )
        self._pid, self._port = server.pid, int(server.announced["port"])
        self.url = self.url or self._bed.link.reach(server.url)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self._pid is not None
        os.kill(self._pid, signal.SIGKILL)
        self._pid = None
        self._running.close()

    def variables(self, tenant: str) -> Mapping[str, str]:
        """What lets a tenant's client in."""
        return {"HAPI_TOKEN": self._tokens[tenant]}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()
