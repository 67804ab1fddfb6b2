"""A connection to something on this machine, as those to storage servers are, to see what these cost."""

from __future__ import annotations

import httpx

from profiler.remote.connection import Connection, Timeouts


def loopback(port: int, seconds: float) -> Connection:
    """To a port of this machine; no proxy of the environment comes between, and no token is sent.

    Whatever does not come within so many seconds is an error.
    """
    timeouts = Timeouts(seconds, seconds, seconds, seconds)
    return Connection(f"http://127.0.0.1:{port}", "", timeouts, httpx.HTTPTransport())
