"""The processes as their owner has them: begun when they are wanted, given samples, replaced when they end."""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Protocol

import torch

from hapi.data.decoding.messages import READY, SharedMemory, fill, receive_head, send
from hapi.data.images import Window
from hapi.data.manifest import Sample
from hapi.data.transforms import TransformSpec, load_sample
from hapi.errors import ImageError, TransformError

log = logging.getLogger(__name__)

MANY = 4
"""So many threads leave most of the lock to others."""
TRIES = 2
"""Processes that may end over one sample: the first could have been ended by somebody else."""
BIRTH_SECONDS, END_SECONDS = 10.0, 2.0
"""For which a fork is waited for when it begins, and all of them at the end, when each has the sample that it works
on to finish."""
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""What is forked from must have no threads, which a fork would not have; and samples are parallel already."""
FORK_SERVER = "hapi.data.decoding.served"
_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (ImageError, TransformError, MemoryError)}


class Load(Protocol):
    """What `hapi.data.load_sample` does."""

    def __call__(
        self, data: bytes, spec: TransformSpec, *, seed: int = 0, epoch: int = 0, index: int = 0,
        window: Window | None = None,
    ) -> torch.Tensor: ...  # fmt: skip


def loader_for(threads: int, device: str | torch.device) -> Load:
    """`load_sample` for who calls it on so many threads for this device: itself, or processes, to the same bits.

    Where the processors compute the network as well, there is nothing to gain by giving them more to do.
    """
    is_worth_it = threads > MANY and torch.device(device).type != "cpu" and sys.platform == "linux"
    return _shared() if is_worth_it else load_sample


def get_ready(load: Load, seconds: float = 60.0) -> None:
    """Before decoding is timed: waits until processes have started, if it is they who decode."""
    if isinstance(load, Processes):
        load.wait(seconds)


@cache
def _shared() -> Processes:
    """For all of this process: what each needs to begin with is there once. It takes some seconds to start, so that is
    begun at once."""
    shared = Processes()
    atexit.register(shared.close)
    shared.start()
    return shared


@dataclass(frozen=True)
class Fetched:
    """One sample that a process read and decoded: its tensor, and what that took."""

    tensor: torch.Tensor
    read_seconds: float
    decode_seconds: float
    stored_bytes: int


@dataclass(eq=False)
class Fork:
    """One process: where it is asked, and the memory in which it leaves several samples."""

    socket: socket.socket
    memory: SharedMemory

    def close(self) -> None:
        """It ends once it notices."""
        self.socket.close()
        self.memory.close()


class Processes:
    """As many processes as threads call this at once. Until the first is ready, and where none can be had, the calling
    thread decodes by itself. Thread-safe; `close` ends them, as does the end of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Fork] = []
        self._server: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: threading.Thread | None = None
        self._is_closed = False
        self._owner = os.getpid()

    @property
    def is_ready(self) -> bool:
        """Whether there is what processes are forked from."""
        return self._server is not None

    def __call__(
        self,
        data: bytes,
        spec: TransformSpec,
        *,
        seed: int = 0,
        epoch: int = 0,
        index: int = 0,
        window: Window | None = None,
    ) -> torch.Tensor:
        """See `load_sample`. ImageError also for a sample over which processes ended."""
        numbers = {"seed": int(seed), "epoch": int(epoch), "index": int(index)}
        asked = {"transform": _text(spec), "window": window, **numbers}
        for tried in range(TRIES):
            if (process := self._take(is_new=tried > 0)) is None:
                return load_sample(data, spec, seed=seed, epoch=epoch, index=index, window=window)
            with suppress(OSError), self._lent(process):
                send(process.socket, asked, data)
                said, length = receive_head(process.socket)
                answer = _receive_tensor(process.socket, said, length)
                break
        else:
            raise ImageError(
                f"decoding it ended the process that did, {TRIES} times: it is damaged in a way that decoders do not "
                "survive, or this machine has too little memory."
            )
        if isinstance(answer, Exception):
            raise answer
        return answer

    def fetch(
        self,
        store: str,
        samples: Sequence[tuple[int, Sample]],
        spec: TransformSpec,
        *,
        seed: int,
        epoch: int,
        shape: Sequence[int],
        most_bytes: int,
        keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    ) -> list[Fetched | None]:
        """Has one process read samples, given with their indices, and decode them: far less of Python's lock for each.

        None for each that was not to be had this way, whatever the reason: it did not come whole from the store, is no
        picture, has more than `most_bytes` of pixels, or other than `shape` (C, H, W) as its tensor; or the process
        ended. `store` is what `hapi.data.stores.described` says of it. `keep` copies tensors (n, C, H, W) out of memory
        that is used again.
        """
        asked = {
            "store": store,
            "samples": [(sample.key, sample.offset, sample.length, int(index)) for index, sample in samples],
            "transform": _text(spec),
            "seed": int(seed),
            "epoch": int(epoch),
            "shape": list(shape),
            "most_bytes": most_bytes,
        }
        none: list[Fetched | None] = [None] * len(samples)
        if (process := self._take()) is None:
            return none
        with suppress(OSError), self._lent(process):
            room = process.memory.floats(len(samples), torch.Size(shape).numel()).view(-1, *shape)
            send(process.socket, asked)
            told = receive_head(process.socket)[0]["fetched"]
            tensors = keep(room).unbind()
            return [said and Fetched(tensor, *said) for tensor, said in zip(tensors, told, strict=True)]
        return none

    def start(self) -> None:
        """Begins to start them, on a thread of its own."""
        with self._lock:
            if self._starting is None and not self._is_closed:
                self._starting = threading.Thread(target=self._prepare, name="hapi-processes", daemon=True)
                self._starting.start()

    def wait(self, seconds: float) -> bool:
        """Starts them, and waits; whether they are ready."""
        self.start()
        if (starting := self._starting) is not None:
            starting.join(seconds)
        return self._server is not None

    def close(self) -> None:
        """Ends all that are not at work; those end after it."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            forks, self._idle = self._idle, []
            server, self._server = self._server, None
        for fork in forks:
            fork.close()
        if server is not None:
            server.close()
        self._end(END_SECONDS if server is not None else 0.0)  # one that only starts would not notice for seconds

    @contextmanager
    def _lent(self, process: Fork) -> Iterator[None]:
        """It can be asked again after the block, unless that fails: it may be in the middle of an answer."""
        try:
            yield
        except BaseException:
            process.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._idle.append(process)
                return
        process.close()

    def _take(self, *, is_new: bool = False) -> Fork | None:
        """One that has nothing to do, or one more. After one that had ended, others may have, too: then a new one."""
        if self._owner != os.getpid():
            return None  # a fork of the process that they belong to
        self.start()
        with self._lock:
            if self._idle and not is_new:
                return self._idle.pop()
            return None if self._server is None else self._fork(self._server)

    def _fork(self, server: socket.socket) -> Fork | None:
        """One more, which has said that it is there; None if there cannot be one now."""
        try:
            memory = SharedMemory.create()
        except OSError:  # too many open files, as below
            return None
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            memory.close()
            return None
        process = Fork(ours, memory)
        with theirs:
            try:
                socket.send_fds(server, [READY], [theirs.fileno(), memory.descriptor])
            except OSError:
                self._give_up(server, "has ended")
                process.close()
                return None
        ours.settimeout(BIRTH_SECONDS)
        try:
            is_there = ours.recv(1) == READY
        except TimeoutError:
            self._give_up(server, "does not answer")
            is_there = False
        except OSError:
            is_there = False
        if is_there:
            ours.settimeout(None)
            return process
        process.close()
        return None

    def _give_up(self, server: socket.socket, why: str) -> None:
        log.warning("the fork server of the processes that decode %s: threads decode from now on", why)
        self._server = None
        server.close()

    def _prepare(self) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            log.warning("threads decode, as no fork server could be started: %s", error)
            return
        try:
            with theirs:
                # -P: no code from the directory that this happens to be in
                command = [sys.executable, "-P", "-m", FORK_SERVER, str(theirs.fileno())]
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **ALONE}
                )
            is_ready = ours.recv(1) == READY
        except OSError as error:
            log.warning("threads decode, as no fork server could be started: %s", error)
            ours.close()
            self._end(END_SECONDS)
            return
        with self._lock:
            if is_ready and not self._is_closed:
                self._server = ours
                return
        if not self._is_closed:
            log.warning("threads decode, as the fork server ended at once")
        ours.close()
        self._end(END_SECONDS)

    def _end(self, seconds: float) -> None:
        """Waits for a fork server that nobody can ask any more, and ends it after so many seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)


@lru_cache(maxsize=64)
def _text(spec: TransformSpec) -> str:
    return json.dumps(spec.to_json(), allow_nan=False)


def _receive_tensor(process: socket.socket, said: dict[str, Any], length: int) -> torch.Tensor | Exception:
    if "error" in said:
        name, message = said["error"], said["message"]
        return _ERRORS[name](message) if name in _ERRORS else RuntimeError(f"{name}: {message}")
    tensor = torch.empty(said["shape"], dtype=torch.float32, device="cpu")
    if tensor.nbytes != length:
        raise ConnectionError(f"{length} bytes for a tensor of {tensor.nbytes}")
    if length:
        fill(process, memoryview(tensor.numpy()).cast("B"))  # type: ignore[arg-type]  # mypy knows no such buffer
    return tensor
