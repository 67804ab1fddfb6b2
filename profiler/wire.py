"""What features cost on their way into the network and out of it, beside the graph and the link."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from time import thread_time

import numpy as np
import torch

from hapi.wire import Codec, FeatureBatch, StreamEncoder, read_stream

ROWS, ROW_VALUES = 8, 2**17
"""Of one message: half a megabyte a row, as early cuts have it."""
MESSAGES = 8
"""Together more than a processor's caches hold: in a job other data passes through them between two messages."""
PIECE_BYTES = 2**16
"""That a client takes from its socket at once."""


def wire_seconds_per_byte(
    codec: Codec, *, messages: int = MESSAGES, clock: Callable[[], float] = thread_time
) -> tuple[float, float]:
    """(to write, to read) processor seconds per byte on the wire.

    Rows of float32 features are joined, encoded, handed to a socket, taken from it and decoded, as tiers do it; what
    the network between them takes is not in it. `clock` tells what the calling thread has worked, in seconds.
    """
    encoder = StreamEncoder([(ROW_VALUES,)], [torch.float32], codec.name)
    rows = [[torch.randn(ROW_VALUES) for _ in range(ROWS)] for _ in range(messages)]
    shipped = messages * ROWS * codec.bytes_per_row((ROW_VALUES,))
    ours, theirs = socket.socketpair()
    read: list[float] = []
    with ours, theirs:
        reader = threading.Thread(target=lambda: read.append(_read_all(theirs, clock)), name="hapi-measure")
        reader.start()
        try:
            began = clock()
            ours.sendall(encoder.header())
            for number, row in enumerate(rows):
                indices = np.arange(number * ROWS, (number + 1) * ROWS)
                ours.sendall(encoder.encode(FeatureBatch(indices, np.zeros(ROWS, np.int64), (torch.stack(row),))))
            ours.sendall(encoder.end())
            written = clock() - began
        finally:
            ours.shutdown(socket.SHUT_WR)
            reader.join()
    return written / shipped, read[0] / shipped


def _read_all(source: socket.socket, clock: Callable[[], float]) -> float:
    """Seconds that this thread works on reading a stream to its end."""
    began = clock()
    for _ in read_stream(_pieces(source)):
        pass
    return clock() - began


def _pieces(source: socket.socket) -> Iterator[bytes]:
    while piece := source.recv(PIECE_BYTES):
        yield piece
