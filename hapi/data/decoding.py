"""Decoding in processes, for who keeps a GPU busy with more samples at once than the threads of one process decode.

Threads hold Python's lock for a fifth of the time that a photograph takes, and whoever starts a network's operations on
a GPU waits for it, too. Here a thread gives its sample to a process and waits without the lock, for a tenth to a third
of that, and a sixth more of the processors' time. The processes are forks of one, the fork server, that has imported
all that is needed. It is started afresh, by the name of this module, so nothing of the caller comes along; what goes to
and fro is JSON and bytes. They end with whoever started them, however that ends.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from hapi.data.images import Window
from hapi.data.transforms import TransformSpec, load_sample
from hapi.errors import ImageError, TransformError

log = logging.getLogger(__name__)

MANY = 4
"""So many threads leave most of the lock to others."""
TRIES = 2
"""Processes that may end over one sample: the first could have been ended by somebody else."""
READY = b"!"
BIRTH_SECONDS, END_SECONDS = 10.0, 2.0
"""For which a fork is waited for when it begins, and all of them at the end, when each has the sample that it works
on to finish."""
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""What is forked from must have no threads, which a fork would not have; and samples are parallel already."""
_LENGTHS = struct.Struct("!IQ")
"""Before each message: the bytes of its JSON, and of what follows that."""
_MOST_HEAD = 2**24
_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (ImageError, TransformError, MemoryError)}
_SCORE = Path("/proc/self/oom_score_adj")


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


class Processes:
    """As many processes as threads call this at once. Until the first is ready, and where none can be had, the calling
    thread decodes by itself. Thread-safe; `close` ends them, as does the end of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._server: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: threading.Thread | None = None
        self._is_closed = False
        self._owner = os.getpid()

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
            try:
                _send(process, asked, data)
                said, length = _receive_head(process)
                answer = _receive_tensor(process, said, length)
            except OSError:
                process.close()
                continue
            except BaseException:
                process.close()  # it may be in the middle of an answer
                raise
            self._give_back(process)
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise ImageError(
            f"decoding it ended the process that did, {TRIES} times: it is damaged in a way that decoders do not "
            "survive, or this machine has too little memory."
        )

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
            sockets, self._idle = self._idle, []
            is_serving = self._server is not None
            if self._server is not None:
                sockets.append(self._server)
            self._server = None
        for one in sockets:
            one.close()
        self._end(END_SECONDS if is_serving else 0.0)  # one that only starts would not notice for seconds

    def _take(self, *, is_new: bool) -> socket.socket | None:
        """One that has nothing to do, or one more. After one that had ended, others may have, too: then a new one."""
        if self._owner != os.getpid():
            return None  # a fork of the process that they belong to
        self.start()
        with self._lock:
            if self._idle and not is_new:
                return self._idle.pop()
            return None if self._server is None else self._fork(self._server)

    def _give_back(self, process: socket.socket) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(process)
                return
        process.close()

    def _fork(self, server: socket.socket) -> socket.socket | None:
        """One more, which has said that it is there; None if there cannot be one now."""
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # too many open files
            return None
        with theirs:
            try:
                socket.send_fds(server, [READY], [theirs.fileno()])
            except OSError:
                log.warning("the fork server of the processes that decode has ended: threads decode from now on")
                server.close()
                ours.close()
                self._server = None
                return None
        ours.settimeout(BIRTH_SECONDS)
        try:
            is_there = ours.recv(1) == READY
        except TimeoutError:
            log.warning("the fork server of the processes that decode does not answer: threads decode from now on")
            self._server = None
            server.close()
            is_there = False
        except OSError:
            is_there = False
        if is_there:
            ours.settimeout(None)
            return ours
        ours.close()
        return None

    def _prepare(self) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            log.warning("threads decode, as no fork server could be started: %s", error)
            return
        try:
            with theirs:
                command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]  # -P: no code from the directory
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


@lru_cache(maxsize=64)
def _spec(text: str) -> TransformSpec:
    return TransformSpec.from_json(json.loads(text))


def _send(to: socket.socket, head: dict[str, Any], body: bytes | memoryview) -> None:
    """In one call where there is room for all of it: after each, a thread has to wait for Python's lock again."""
    text = json.dumps(head).encode()
    front = _LENGTHS.pack(len(text), len(body)) + text
    sent = to.sendmsg([front, body])
    if sent < len(front):
        to.sendall(front[sent:])
    if (rest := max(0, sent - len(front))) < len(body):
        to.sendall(memoryview(body)[rest:])


def _receive_head(process: socket.socket) -> tuple[dict[str, Any], int]:
    """The JSON of a message, and how many bytes follow. ConnectionError if there is no more."""
    lengths = bytearray(_LENGTHS.size)
    _fill(process, memoryview(lengths))
    head, body = _LENGTHS.unpack(lengths)
    if head > _MOST_HEAD:
        raise ConnectionError(f"a message of {head} bytes")
    text = bytearray(head)
    _fill(process, memoryview(text))
    return json.loads(text), body


def _receive_tensor(process: socket.socket, said: dict[str, Any], length: int) -> torch.Tensor | Exception:
    if "error" in said:
        name, message = said["error"], said["message"]
        return _ERRORS[name](message) if name in _ERRORS else RuntimeError(f"{name}: {message}")
    tensor = torch.empty(said["shape"], dtype=torch.float32, device="cpu")
    if tensor.nbytes != length:
        raise ConnectionError(f"{length} bytes for a tensor of {tensor.nbytes}")
    if length:
        _fill(process, memoryview(tensor.numpy()).cast("B"))  # type: ignore[arg-type]  # mypy knows no such buffer
    return tensor


def _fill(source: socket.socket, view: memoryview) -> None:
    """All of it in one call, see `_send`, unless a signal comes. ConnectionError if it ends before."""
    while view:
        if (count := source.recv_into(view, flags=socket.MSG_WAITALL)) == 0:
            raise ConnectionResetError("the other process has ended")
        view = view[count:]


def _serve(asker: socket.socket) -> None:
    """A process: decodes one sample after the other until nobody can ask any more."""
    with suppress(OSError):  # it ended, whether in the middle of something or not
        asker.sendall(READY)
        while True:
            asked, length = _receive_head(asker)
            data = bytearray(length)
            _fill(asker, memoryview(data))
            try:
                window = None if asked["window"] is None else Window(*asked["window"])
                spec = _spec(asked["transform"])
                numbers = {name: asked[name] for name in ("seed", "epoch", "index")}
                tensor = load_sample(bytes(data), spec, window=window, **numbers)
                values = memoryview(tensor.numpy()) if tensor.numel() else b""  # type: ignore[arg-type]
            except Exception as error:
                _send(asker, {"error": type(error).__name__, "message": str(error)}, b"")
            else:
                _send(asker, {"shape": list(tensor.shape)}, memoryview(values).cast("B"))


def _fork_server(control: socket.socket) -> None:
    """The process that the others are forked from, each to serve a socket that it is sent."""
    import torchvision.transforms.v2  # noqa: F401  # once for all

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this, and ends this with it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(OSError):
        _SCORE.write_text("500")  # where memory runs out these are the first to end, and their samples not lost
    control.sendall(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as served, suppress(OSError):  # no room for one more: that is seen
            if os.fork() == 0:
                control.close()
                _serve(served)
                os._exit(0)


if __name__ == "__main__":
    _fork_server(socket.socket(fileno=int(sys.argv[1])))
