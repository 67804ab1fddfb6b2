"""Models that the server holds: received, checked, loaded once, shared by every request and cut, dropped when idle."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256

from hapi.cancel import Cancel
from hapi.engine import Precision
from hapi.errors import ArchiveError, DigestMismatchError, MemoryBudgetError, ServiceError, UnknownModelError
from hapi.files import Draft
from hapi.model import Graph, load_archive
from hapi.model.specs import dtype_name
from hapi.units import format_bytes
from hapi.wire.protocol import CutInfo, ModelInfo
from storage_server.extraction.engine import BETWEEN, Engines, Prefix
from storage_server.library.archives import ArchiveStore
from storage_server.library.locks import KeyedLocks
from storage_server.memory.budget import MemoryBudget
from storage_server.memory.turns import Turns
from storage_server.memory.workspaces import Workspaces
from storage_server.metrics import Metrics

log = logging.getLogger(__name__)

UNUSED_KEPT = 8
"""Graphs without a promise that stay in memory while nobody uses them: just received, for the request that follows."""


class Upload:
    """An archive on its way in. Blocking: to be used from a thread."""

    def __init__(self, store: ModelStore, digest: str, tenant: str) -> None:
        self._store = store
        self._digest = digest
        self._tenant = tenant
        self._hasher = sha256()
        with _disk_errors():
            self._draft = Draft(store.archives.folder)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._draft.size

    def write(self, data: bytes | bytearray) -> None:
        """Adds bytes; TooLargeError as soon as they are too many."""
        self._store.archives.check_size(self._draft.size + len(data))
        self._hasher.update(data)
        with _disk_errors():
            self._draft.write(data)

    def finish(self) -> tuple[ModelInfo, bool]:
        """Checks and keeps the archive; answers what it is, and whether it was new."""
        if self._hasher.hexdigest() != self._digest:
            raise DigestMismatchError(
                f"the {self._draft.size} bytes received have digest {self._hasher.hexdigest()}, not {self._digest}. "
                "Send the archive again, under the digest that save_archive gave."
            )
        with _disk_errors():
            return self._store.receive(self._draft, self._digest, self._tenant)

    def close(self) -> None:
        """Removes what was not kept."""
        with suppress(OSError):  # a full disk takes no more of what is thrown away
            self._draft.discard()


@dataclass
class _Loaded:
    graph: Graph
    promised_bytes: int = 0
    users: int = 0
    prefixes: dict[tuple[str, Precision], Prefix] = field(default_factory=dict)


class ModelStore:
    """Archives on disk and graphs in memory. Thread-safe; methods may block on the disk.

    A graph's weights are mapped from its archive, once per digest. What a prefix of it reads is promised from the
    memory budget; graphs that no request uses are dropped, least recently used first, when another needs the room.
    A request that finds no room waits for its turn, and other models' new requests soon wait behind it.
    """

    def __init__(
        self,
        archives: ArchiveStore,
        budget: MemoryBudget,
        device: str,
        metrics: Metrics,
        workspaces: Workspaces | None = None,
        engines: Engines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.archives = archives
        self._budget = budget
        self._device = device
        self._metrics = metrics
        self._workspaces = workspaces or Workspaces(device)
        self._engines = engines
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._turns = Turns(self._changed, clock)
        self._per_digest = KeyedLocks()

    def receive(self, draft: Draft, digest: str, tenant: str) -> tuple[ModelInfo, bool]:
        """Keeps an archive whose digest is right, if it is one: ArchiveError says what is wrong with it."""
        with self._per_digest.held(digest):
            known = self.archives.info(digest)
            if known is not None:
                self.archives.claim(digest, tenant)
                return known, False
            draft.flush()
            with self._lock:
                held = self._loaded.get(digest)  # removed from the disk, but still in use
                in_use = [name for name, loaded in self._loaded.items() if loaded.users]
            called = f"the archive {digest[:12]}..."
            graph = held.graph if held else load_archive(draft.path, expected_digest=digest, called=called)
            info = _describe(graph, digest, draft.size)
            removed = self.archives.add(draft, info, tenant, in_use)
            if held is None:
                self._keep(digest, _Loaded(graph))
            self._drop_idle(removed)
            return info, True

    def info(self, digest: str) -> ModelInfo:
        """What is known of a model; UnknownModelError."""
        info = self.archives.info(digest)
        if info is None:
            raise _unknown(digest)
        return info

    def remove(self, digest: str, tenant: str) -> None:
        """Forgets that `tenant` sent the model, and the model if nobody else did. Requests that use it finish."""
        with self._per_digest.held(digest):
            if self.archives.release(digest, tenant) is None:
                raise _unknown(digest)
            if self.archives.info(digest) is None:
                self._drop_idle([digest])

    @contextmanager
    def lease(self, digest: str, cancel: Cancel | None = None) -> Iterator[Lease]:
        """The model for as long as the block runs; UnknownModelError if it is not here.

        Waits behind requests for other models that have waited for room for long; BusyError if that takes too long.
        """
        self._turns.wait(digest, lambda: True, "Requests for other models wait for memory. Try again later.", cancel)
        with self._per_digest.held(digest):
            loaded = self._take(digest) or self._load(digest)
        try:
            yield Lease(self, digest, loaded, cancel)
        finally:
            with self._changed:
                loaded.users -= 1
                if not loaded.users and self.archives.info(digest) is None:
                    self._drop(digest)
                self._changed.notify_all()
            self._drop_idle()

    def loaded(self) -> list[str]:
        """Digests of the models in memory."""
        with self._lock:
            return list(self._loaded)

    def _take(self, digest: str) -> _Loaded | None:
        with self._lock:
            loaded = self._loaded.get(digest)
            if loaded is not None:
                loaded.users += 1
                self._loaded.move_to_end(digest)
        if loaded is not None:
            self.archives.path(digest)  # notes the use
        return loaded

    def _load(self, digest: str) -> _Loaded:
        path = self.archives.path(digest)
        if path is None:
            raise _unknown(digest)
        try:
            graph = load_archive(path, expected_digest=digest, called=f"the archive {digest[:12]}...")
        except ArchiveError as error:
            if isinstance(error.__cause__, OSError):
                raise ServiceError(f"{error} Have the server's operator look at its disk and its log.") from error
            log.warning("a kept model is damaged, and removed: %s", error)
            self.archives.remove(digest)
            raise _unknown(digest) from None
        return self._keep(digest, _Loaded(graph, users=1))

    def prefix(
        self, digest: str, loaded: _Loaded, cut: str, precision: Precision = "float32", cancel: Cancel | None = None
    ) -> Prefix:
        """The part of a leased model up to `cut`, its weights promised from the budget.

        UnknownCutError; MemoryBudgetError if its weights are more than the budget; waits while others hold it, and
        then BusyError.
        """
        name = loaded.graph.cut(cut).name
        with self._per_digest.held(digest):
            prefix = loaded.prefixes.get((name, precision))
            if prefix is None:
                prefix = Prefix.of(loaded.graph, name, self._device, digest, self._engines, precision)
                loaded.prefixes[name, precision] = prefix
                prefix.memory = self._workspaces.measured(prefix)
        self._promise(digest, loaded, prefix.memory.weight_bytes, f"{prefix.model} up to {name}", cancel)
        return prefix

    def part(self, digest: str, loaded: _Loaded, start: str, end: str, precision: Precision = "float32") -> Prefix:
        """What leads from one cut of a leased model to a later one; UnknownCutError if it cannot.

        Its weights are among those of the prefix up to `end`, which must have been promised.
        """
        name = f"{start}{BETWEEN}{end}"
        with self._per_digest.held(digest):
            part = loaded.prefixes.get((name, precision))
            if part is None:
                part = Prefix.between(loaded.graph, start, end, self._device, digest, self._engines, precision)
                part.memory = self._workspaces.measured(part)
                loaded.prefixes[name, precision] = part
        return part

    def _keep(self, digest: str, loaded: _Loaded) -> _Loaded:
        with self._lock:
            self._loaded[digest] = loaded
        return loaded

    def _promise(self, digest: str, loaded: _Loaded, weight_bytes: int, what: str, cancel: Cancel | None) -> None:
        """Takes the room for weights from the budget, in turn; idle models give way.

        The prefixes of a model share their weights and mostly contain each other, so the largest counts.
        """
        if weight_bytes <= loaded.promised_bytes:
            return
        room = self._budget.room_bytes
        if weight_bytes > room:
            raise MemoryBudgetError(
                f"{what} has {format_bytes(weight_bytes)} of weights; this server may use {format_bytes(room)} for "
                "weights and batches. Choose an earlier cut, or give the server a larger --memory-budget."
            )
        refusal = (
            f"{what} needs {format_bytes(weight_bytes)} for weights, and the models in use leave no room. "
            "Try again later, or give the server a larger --memory-budget."
        )
        self._turns.wait(digest, lambda: self._grant(loaded, weight_bytes), refusal, cancel)

    def _grant(self, loaded: _Loaded, weight_bytes: int) -> bool:
        """Takes the room if it is there, or if idle models can make it; none is dropped in vain. Under the lock."""
        more = weight_bytes - loaded.promised_bytes
        if more <= 0:
            return True  # another request of the same model took it meanwhile
        idle = [digest for digest, other in self._loaded.items() if self._can_go(other)]
        could = sum(self._loaded[digest].promised_bytes for digest in idle)
        if self._budget.weight_bytes - could + more > self._budget.room_bytes:
            return False
        while not self._budget.take_weights(more):
            if not idle:
                return False
            self._drop(idle.pop(0))
        loaded.promised_bytes += more
        self._metrics.model_bytes.set(self._budget.weight_bytes)
        return True

    @staticmethod
    def _can_go(loaded: _Loaded) -> bool:
        return not loaded.users and loaded.promised_bytes > 0

    def _drop_idle(self, removed: Iterable[str] = ()) -> None:
        """Drops graphs that nobody uses: of archives that were removed, whose bytes stay on the disk as long as they
        are mapped, and beyond a few those that hold no promise, which would never have to make room."""
        with self._lock:
            unused = [digest for digest, loaded in self._loaded.items() if not loaded.users]
            useless = [digest for digest in unused if not self._loaded[digest].promised_bytes]
            for digest in {*useless[:-UNUSED_KEPT], *removed}.intersection(unused):
                self._drop(digest)

    def _drop(self, digest: str) -> None:
        loaded = self._loaded.pop(digest, None)
        if loaded is not None:
            self._budget.give_weights(loaded.promised_bytes)
            self._metrics.model_bytes.set(self._budget.weight_bytes)


class Lease:
    """A loaded model in use: it stays in memory until the lease ends."""

    def __init__(self, store: ModelStore, digest: str, loaded: _Loaded, cancel: Cancel | None) -> None:
        self.graph = loaded.graph
        self._store = store
        self._digest = digest
        self._loaded = loaded
        self._cancel = cancel

    def prefix(self, cut: str, precision: Precision = "float32") -> Prefix:
        """See ModelStore.prefix."""
        return self._store.prefix(self._digest, self._loaded, cut, precision, self._cancel)

    def part(self, start: str, end: str, precision: Precision = "float32") -> Prefix:
        """See ModelStore.part."""
        return self._store.part(self._digest, self._loaded, start, end, precision)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A disk that does not take an archive is the server's trouble, and said as such."""
    try:
        yield
    except OSError as error:
        log.error("an archive cannot be kept: %s", error)
        raise ServiceError(
            f"this server cannot keep the archive: {error.strerror or error}. Have its operator make room in its cache "
            "directory, or look at its disk."
        ) from error


def _unknown(digest: str) -> UnknownModelError:
    return UnknownModelError(f"this server holds no model with digest {digest[:12]}.... Upload it first.")


def _describe(graph: Graph, digest: str, size: int) -> ModelInfo:
    cuts = [
        CutInfo(
            name=cut.name,
            index=cut.index,
            shapes=[list(shape) for shape in cut.shapes],
            dtypes=[dtype_name(dtype) for dtype in cut.dtypes],
            bytes_per_sample=cut.bytes_per_sample,
        )
        for cut in graph.cuts
    ]
    return ModelInfo(digest=digest, name=graph.name, bytes=size, cuts=cuts)
