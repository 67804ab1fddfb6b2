"""The storage server's REST API v1 as Python calls: what the profiler asks to measure it, and the client to use it."""

from __future__ import annotations

from profiler.remote.client import ServerClient
from profiler.remote.connection import TOKEN_VARIABLE, Timeouts

__all__ = ["TOKEN_VARIABLE", "ServerClient", "Timeouts"]
