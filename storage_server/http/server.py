"""Running the application: a socket, uvicorn, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from hapi.errors import InputError
from storage_server.http.routes import Shell

BACKLOG = 2048
MOST_FILES = 65536
KEEP_ALIVE_SECONDS = 75
PROBING = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A connection on which nothing happens is asked about after 60 s, and ended two minutes after its other end has gone
without a word (a cable, a power supply): it would keep its request's turn, queue bytes or upload slot for ever."""
CLOSE_SECONDS = 5
"""After the grace time, how long connections may take to close."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. InputError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror or error}). Choose another --port (0 takes a free one) "
            "or --host."
        ) from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections have it from the socket that listens
    for option, value in PROBING.items():
        if hasattr(socket, option):  # macOS has not all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def allow_files() -> None:
    """Lets this process open as many files as it may: the usual 1024 are soon taken by connections to callers and
    stores and by the packs of kept features, and then samples fail that could have been read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def url_of(sock: socket.socket) -> str:
    """How this machine reaches the socket."""
    host, port = sock.getsockname()[:2]
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{wildcard}]:{port}" if ":" in wildcard else f"http://{wildcard}:{port}"


def serve(app: FastAPI, sock: socket.socket, on_listening: Callable[[], None], log_level: str = "info") -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once. Returns, whichever it was."""
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        log_level="warning" if log_level == "info" else log_level,
        access_log=log_level == "debug",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    DrainingServer(config, app.state.shell, on_listening).run([sock])


class DrainingServer(uvicorn.Server):
    """uvicorn, but a signal first makes the server not ready and lets requests finish, and the process exits with 0."""

    def __init__(self, config: uvicorn.Config, shell: Shell, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._admission = shell.service.admission
        self._grace_seconds = shell.service.settings.grace_seconds
        self._on_listening = on_listening
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_listening()

    def stop(self) -> None:
        """What a signal does; also for callers in the event loop's thread."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._admission.end_all("the server is stopping")
            self.should_exit = True

    async def _drain(self) -> None:
        await self._admission.drain(self._grace_seconds)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals drain, and are not raised again after the end, as uvicorn would."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
