"""Bounds of one loader."""

from __future__ import annotations

from dataclasses import dataclass

from hapi.backoff import BUSY_SECONDS, RetryPolicy
from hapi.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Threads that decode, requests at once, bytes that are under way, patience with a server in seconds."""

    threads: int
    in_flight: int
    buffer_bytes: int
    retry_seconds: float
    busy_seconds: float = BUSY_SECONDS

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.buffer_bytes < 1 or min(self.retry_seconds, self.busy_seconds) < 0:
            raise InputError(
                "requests_in_flight and buffer_bytes must be at least 1, retry_seconds and busy_seconds not negative."
            )

    @property
    def retry(self) -> RetryPolicy:
        """Patience with a server, once it was reached."""
        return RetryPolicy(patience_seconds=self.retry_seconds, busy_seconds=self.busy_seconds)
