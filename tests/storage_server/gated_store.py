"""An object store that counts, and waits at a gate: tests decide when reading goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from hapi.data import ObjectInfo, ObjectStore


class GatedStore:
    """Lets `free` reads pass; the others wait until `open_gate`. `on_read` may raise instead."""

    def __init__(self, store: ObjectStore, free: int = 10**9, on_read: Callable[[str], object] = str) -> None:
        self._store = store
        self._free = threading.Semaphore(free)
        self._on_read = on_read
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.begun: list[str] = []
        self.waiting = threading.Semaphore(0)
        """Released once by each read that has come to the closed gate."""

    @property
    def uri(self) -> str:
        return self._store.uri

    def open_gate(self) -> None:
        self._open.set()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._lock:
            self.begun.append(key)
        if not self._free.acquire(blocking=False):
            self.waiting.release()
            assert self._open.wait(60), "nobody opened the gate"
        self._on_read(key)
        return self._store.get(key, offset, length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def info(self, key: str) -> ObjectInfo:
        return self._store.info(key)

    def put(self, key: str, data: bytes) -> None:
        raise AssertionError("a server never writes")

    def close(self) -> None:
        self._store.close()
