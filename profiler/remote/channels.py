"""Connections to one server, each used by one request at a time, so that another thread can break it off."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
"""A host that is silent for a minute is gone; these are the kernel's questions, so a server that computes answers."""


class Channel:
    """An HTTP client with one connection, kept alive between requests."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self._network_stream: Any = None
        self._broken = False

    def send(self, request: httpx.Request) -> httpx.Response:
        """The answer, of which nothing but its headers is read; whoever asked closes it."""
        request.extensions["trace"] = self._trace
        return self.client.send(request, stream=True)

    def break_off(self) -> None:
        """Wakes a thread that waits for this connection: shuts its socket down (closing would not wake the reader)."""
        self._broken = True
        connection = self._network_stream.get_extra_info("socket") if self._network_stream is not None else None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """httpcore's hook: tells of the socket when a connection is made."""
        if event in _CONNECTED:
            self._network_stream = info["return_value"]
            _keep_alive(self._network_stream.get_extra_info("socket"))
            if self._broken:
                self.break_off()


def _keep_alive(connection: socket.socket | None) -> None:
    """Has the kernel find out when the other host is gone, where it can be told how."""
    if connection is None:
        return
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Channels:
    """Lends channels, makes more when all are lent, and keeps those that come back. A forked child starts afresh."""

    def __init__(self, make: Callable[[], httpx.Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._free: list[Channel] = []
        self._process = os.getpid()

    @contextmanager
    def lend(self) -> Iterator[Channel]:
        if self._process != os.getpid():  # connections and a lock that may be held belong to the parent
            self._lock, self._free, self._process = threading.Lock(), [], os.getpid()
        with self._lock:
            channel = self._free.pop() if self._free else Channel(self._make())
        try:
            yield channel
        except BaseException:
            channel.client.close()
            raise
        with self._lock:
            self._free.append(channel)

    def close(self) -> None:
        """Closes what is not lent."""
        with self._lock:
            free, self._free = self._free, []
        for channel in free:
            channel.client.close()
