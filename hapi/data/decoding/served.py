"""A process that decodes what it is asked for, and the one that it is forked from.

It is asked for one sample whose bytes come along, and answers with its tensor or its error; or for several that it
reads itself, and whose tensors it leaves in memory that the asker has, too. Of what it cannot bring this way it says
only that: the asker has it done where errors are told and memory is counted.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from hapi.data.decoding.messages import READY, SharedMemory, fill, receive_head, send
from hapi.data.images import Window, picture_bytes
from hapi.data.stores import ObjectStore, opened_again
from hapi.data.transforms import TransformSpec, load_sample

READERS = 4
"""Objects that one process reads at the same time, while it decodes others."""
_SCORE = Path("/proc/self/oom_score_adj")


def serve(asker: socket.socket, memory: SharedMemory) -> None:
    """Answers one message after the other until nobody can ask any more."""
    with suppress(OSError):  # it ended, whether in the middle of something or not
        asker.sendall(READY)
        while True:
            asked, length = receive_head(asker)
            if "samples" in asked:
                send(asker, {"fetched": _fetch(asked, memory)})
            else:
                data = bytearray(length)
                fill(asker, memoryview(data))
                _answer_one(asker, asked, bytes(data))


def _answer_one(asker: socket.socket, asked: dict[str, Any], data: bytes) -> None:
    try:
        window = None if asked["window"] is None else Window(*asked["window"])
        numbers = {name: asked[name] for name in ("seed", "epoch", "index")}
        tensor = load_sample(data, _spec(asked["transform"]), window=window, **numbers)
        values = memoryview(tensor.numpy()) if tensor.numel() else b""  # type: ignore[arg-type]
    except Exception as error:
        send(asker, {"error": type(error).__name__, "message": str(error)})
    else:
        send(asker, {"shape": list(tensor.shape)}, memoryview(values).cast("B"))


def _fetch(asked: dict[str, Any], memory: SharedMemory) -> list[list[float] | None]:
    """Of each sample the seconds of reading and of decoding it and its stored bytes; None: it is not to be had so."""
    shape, samples = asked["shape"], asked["samples"]
    try:
        rows = memory.floats(len(samples), torch.Size(shape).numel()).view(-1, *shape)
        store, spec = _store(asked["store"]), _spec(asked["transform"])
        reads = [_readers().submit(_read, store, key, offset, length) for key, offset, length, _ in samples]
    except Exception:
        return [None] * len(samples)
    return [
        _fetched(read, row, spec, asked["most_bytes"], seed=asked["seed"], epoch=asked["epoch"], index=index)
        for read, row, (*_, index) in zip(reads, rows, samples, strict=True)
    ]


def _fetched(
    read: Future[tuple[bytes, float]], row: torch.Tensor, spec: TransformSpec, most_bytes: int, **numbers: Any
) -> list[float] | None:
    try:
        data, read_seconds = read.result()
        began = time.perf_counter()
        if picture_bytes(data) > most_bytes:
            return None
        tensor = load_sample(data, spec, **numbers)
        if tensor.shape != row.shape:
            return None
        row.copy_(tensor)
        return [read_seconds, time.perf_counter() - began, len(data)]
    except Exception:
        return None


def _read(store: ObjectStore, key: str, offset: int, length: int) -> tuple[bytes, float]:
    began = time.perf_counter()
    return store.get(key, offset, length), time.perf_counter() - began


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="hapi-read")


@lru_cache(maxsize=16)
def _store(described: str) -> ObjectStore:
    return opened_again(described)


@lru_cache(maxsize=64)
def _spec(text: str) -> TransformSpec:
    return TransformSpec.from_json(json.loads(text))


def fork_server(control: socket.socket) -> None:
    """The process that the others are forked from, each to serve a socket that it is sent, with its memory."""
    import torchvision.transforms.v2  # noqa: F401  # once for all

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this, and ends this with it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(OSError):
        _SCORE.write_text("500")  # where memory runs out these are the first to end, and their samples not lost
    control.sendall(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        _fork(control, descriptors)


def _fork(control: socket.socket, descriptors: Sequence[int]) -> None:
    served, memory = socket.socket(fileno=descriptors[0]), SharedMemory(descriptors[1])
    with served, suppress(OSError):  # no room for one more: that is seen
        if os.fork() == 0:
            control.close()
            serve(served, memory)
            os._exit(0)
    memory.close()


if __name__ == "__main__":
    fork_server(socket.socket(fileno=int(sys.argv[1])))
