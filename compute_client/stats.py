"""What a loader did so far, countable from several threads."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LoaderStats:
    """Totals over all epochs of one loader.

    Attributes:
        samples: samples yielded.
        batches: batches yielded.
        failed_samples: samples left out because of `on_error="skip"`.
        cached_samples: samples yielded from the cache, without any work.
        disk_samples: samples read from the cache's folder.
        samples_by_cut: cut -> samples that arrived there.
        fallback_samples: samples read here since the server was given up.
        bytes_received: bytes of features and objects received from the server, after HTTP.
        bytes_read: bytes of objects read from the store by this process.
        requests: extract requests sent, repeated ones included.
        retries: requests that were sent again because an answer failed or was incomplete.
        refused: of those, requests that a full server put off.
        waiting_seconds: time the training loop waited for a batch.
        suffix_seconds: time the compute device worked on suffixes.
        decode_seconds: thread time of decoding and transforming here.
    """

    samples: int = 0
    batches: int = 0
    failed_samples: int = 0
    cached_samples: int = 0
    disk_samples: int = 0
    samples_by_cut: dict[str, int] = field(default_factory=dict)
    fallback_samples: int = 0
    bytes_received: int = 0
    bytes_read: int = 0
    requests: int = 0
    retries: int = 0
    refused: int = 0
    waiting_seconds: float = 0.0
    suffix_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Adds to the named totals."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def arrived(self, cut: str, samples: int) -> None:
        """Counts samples that arrived at a cut."""
        with self._lock:
            self.samples_by_cut[cut] = self.samples_by_cut.get(cut, 0) + samples

    def to_json(self) -> dict[str, Any]:
        with self._lock:
            return asdict(self)
