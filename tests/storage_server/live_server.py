"""A service behind real uvicorn on a loopback port, in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

import uvicorn

from storage_server.http.app import app_of
from storage_server.http.server import DrainingServer, listen, url_of
from storage_server.service import Service


class LiveServer:
    """`with LiveServer(service) as url:`; leaving the block drains and waits for the end."""

    def __init__(self, service: Service) -> None:
        self._listening = threading.Event()
        self._sock = listen("127.0.0.1", 0)
        app = app_of(service)
        config = uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=5)
        self._server = DrainingServer(config, app.state.shell, self._ready)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._server.run, args=([self._sock],))

    def _ready(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening.set()

    def stop(self) -> None:
        """What SIGTERM does."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._server.stop)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not end"

    def __enter__(self) -> str:
        url = url_of(self._sock)
        self._thread.start()
        assert self._listening.wait(60)
        return url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self.stop()
        self.join()
