"""Features in a folder or bucket that servers share: looked up in memory, fetched one by one, written behind."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from hapi.cache import layout, parcels
from hapi.cache.depot import Depot
from hapi.data.stores import ErasableStore
from hapi.errors import HapiError

log = logging.getLogger(__name__)
T = TypeVar("T")

PARCEL_BYTES = 8 * 2**20
"""Entries are put together into objects of about this size: a request to a store costs as much as some megabytes."""
WAITING_BYTES = 32 * 2**20
"""Most bytes that wait to be written; what comes beyond is not kept there."""
LINGER_SECONDS = 10.0
"""How long entries wait for others to share a parcel with."""
REFRESH_SECONDS = 60.0
"""How often the store is listed, for what other servers wrote and removed."""
REST_SECONDS = 30.0
"""For so long a store that failed is left alone."""

Tensors = tuple[torch.Tensor, ...]


class BucketCache:
    """Tuples of host tensors by 32-byte key. Thread-safe. A store that fails makes it an empty cache, never an error.

    `in` asks nobody; `get` waits for the store; `put` never waits: a thread of its own writes. What it holds when the
    process is killed is lost; what is in the store is whole.

    Attributes:
        failures: times that the store failed, or gave something damaged.
        dropped: entries that were not kept: too many waited, the store failed, or had no room.
    """

    def __init__(
        self,
        store: ErasableStore,
        budget_bytes: int,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """`budget_bytes`: of all that lies below the store's root, whoever writes there with that budget."""
        self.hits = self.misses = self.failures = self.dropped = 0
        self._depot = Depot(store, budget_bytes)
        self._parcel_bytes = max(1, min(PARCEL_BYTES, budget_bytes // 8))
        self._refresh_seconds, self._linger_seconds = refresh_seconds, linger_seconds
        self._waiting: queue.Queue[tuple[bytes, Tensors] | threading.Event] = queue.Queue()
        self._waiting_bytes = 0
        self._waiting_keys: set[bytes] = set()
        self._rests_until = 0.0
        self._is_failing = self._is_closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="hapi-bucket", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        return self._depot.uri

    @property
    def nbytes(self) -> int:
        """Bytes of all that lies there, as last listed."""
        return self._depot.nbytes

    def get(self, key: bytes) -> Tensors | None:
        """The tensors kept under `key`, or None. They are the caller's own."""
        place = self._depot.find(key)
        tensors = self._tried(lambda: self._depot.get(key, *place)) if place is not None else None
        self.hits += tensors is not None
        self.misses += tensors is None
        return tensors

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Keeps host tensors, after a while; they must not be written to until then."""
        size = _bytes_of(tensors)
        if not all(tensor.dtype in layout.KEPT for tensor in tensors):
            return
        with self._lock:
            if self._is_closed or key in self._waiting_keys or self._depot.find(key) is not None:
                return
            if size > parcels.MOST_ENTRY_BYTES or self._waiting_bytes + size > WAITING_BYTES or self._rests:
                self.dropped += 1
                return
            self._waiting_bytes += size
            self._waiting_keys.add(key)
        self._waiting.put((key, tensors))

    def __contains__(self, key: bytes) -> bool:
        """Whether `get` would probably find it."""
        return not self._rests and self._depot.find(key) is not None

    def flush(self) -> None:
        """Waits until the store has been listed and all that waits is written, or has failed to be."""
        done = threading.Event()
        self._waiting.put(done)
        while self._thread.is_alive() and not done.wait(1.0):
            continue

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            self.flush()
            self._thread.join()
            self._depot.close()

    @property
    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def _loop(self) -> None:
        """Lists the store now and then, and gathers entries into parcels in between."""
        entries: list[tuple[bytes, Tensors]] = []
        gathered, due = 0, 0.0
        listed = time.monotonic()
        self._tried(self._depot.refresh)
        while True:
            now = time.monotonic()
            if now - listed >= self._refresh_seconds:
                listed = now
                self._tried(self._depot.refresh)
            until = min(listed + self._refresh_seconds, due if entries else listed + self._refresh_seconds)
            try:
                item = self._waiting.get(timeout=max(0.0, until - now))
            except queue.Empty:
                item = None
            if isinstance(item, tuple):
                due = due if entries else time.monotonic() + self._linger_seconds
                entries.append(item)
                gathered += _size(item)
            is_asked = isinstance(item, threading.Event)
            if entries and (is_asked or time.monotonic() >= due or gathered >= self._parcel_bytes):
                self._write(entries)
                entries, gathered = [], 0
            if isinstance(item, threading.Event):
                item.set()
                if self._is_closed:
                    return
            del item

    def _write(self, entries: list[tuple[bytes, Tensors]]) -> None:
        def add() -> bool:
            wrapped = [parcels.entry_of(key, tensors) for key, tensors in entries]
            return self._depot.add(parcels.wrap(wrapped), len(wrapped))

        is_kept = self._tried(add)
        with self._lock:
            self.dropped += 0 if is_kept else len(entries)
            self._waiting_bytes -= sum(map(_size, entries))
            self._waiting_keys.difference_update(key for key, _ in entries)

    def _tried(self, work: Callable[[], T]) -> T | None:
        """What `work` answers; None if the store fails or rests. Says so once, until it works again."""
        if self._rests:
            return None
        try:
            answer = work()
        except (HapiError, MemoryError) as error:
            with self._lock:
                self.failures += 1
                is_new, self._is_failing = not self._is_failing, True
                self._rests_until = time.monotonic() + REST_SECONDS
            if is_new:
                said = str(error) or "out of memory."
                log.warning("feature cache %s: %s It is tried again now and then; no request needs it.", self.uri, said)
            return None
        except ValueError as error:
            with self._lock:
                self.failures += 1
            log.warning("feature cache %s: a damaged parcel is not read any more (%s)", self.uri, error)
            return None
        if self._is_failing:
            self._is_failing = False
            log.info("feature cache %s works again", self.uri)
        return answer


def _bytes_of(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(entry: tuple[bytes, Tensors]) -> int:
    return _bytes_of(entry[1])
