"""What features cost on their way into the network and out of it, beside the graph and the link."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from time import thread_time

import numpy as np
import torch

from hapi.wire import Codec, FeatureBatch, StreamEncoder, read_stream
from hapi.wire.protocol import ARROW_STREAM
from profiler.remote.loopback import loopback

ROWS, ROW_VALUES = 8, 2**17
"""Of one message: half a megabyte a row, as early cuts have it."""
MESSAGES = 8
"""Together more than a processor's caches hold: in a job other data passes through them between two messages."""
TURNS = 2
"""So often are they sent; the last time counts. In the first, memory is touched for the first time, in a job only
seldom."""
ANSWER_SECONDS = 60.0


def wire_seconds_per_byte(
    codec: Codec, *, messages: int = MESSAGES, clock: Callable[[], float] = thread_time
) -> tuple[float, float]:
    """(to write, to read) processor seconds per byte on the wire.

    Rows of float32 features are joined, encoded, and sent as an answer of HTTP over a connection within this machine,
    by a loop of events; there they are read as answers of a server are, and decoded. What a network takes is not in
    it. `clock` tells what the calling thread has worked, in seconds.
    """
    rows = [[torch.randn(ROW_VALUES) for _ in range(ROWS)] for _ in range(messages)]
    shipped = messages * ROWS * codec.bytes_per_row((ROW_VALUES,))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = _Sender(listening, codec, rows, clock)
        sender.start()
        try:
            with closing(loopback(listening.getsockname()[1], ANSWER_SECONDS)) as connection:
                for _ in range(TURNS):
                    began = clock()
                    with connection.stream("GET", "/link", expects=ARROW_STREAM) as pieces:
                        for _ in read_stream(pieces):
                            pass
                    read = clock() - began
        finally:
            sender.end()
    return sender.seconds[-1] / shipped, read / shipped


@dataclass
class _Sender:
    """The other side, on a thread of its own: it answers every request on every connection with the same rows.

    `seconds` are what its thread worked for each answer.
    """

    listening: socket.socket
    codec: Codec
    rows: list[list[torch.Tensor]]
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        self._runner, self._is_over = asyncio.Runner(), asyncio.Event()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="hapi-measure", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends the thread; what it was sending breaks off."""
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    def _run(self) -> None:
        with self._runner as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self.listening)
        try:
            await self._is_over.wait()
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):  # whoever asked has left
            while True:
                await reader.readuntil(b"\r\n\r\n")
                began = self.clock()
                await self._send(writer)
                self.seconds.append(self.clock() - began)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        encoder = StreamEncoder([(ROW_VALUES,)], [torch.float32], self.codec.name)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {ARROW_STREAM}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        await _send_piece(writer, encoder.header())
        for number, row in enumerate(self.rows):
            indices = np.arange(number * ROWS, (number + 1) * ROWS)
            batch = FeatureBatch(indices, np.zeros(ROWS, np.int64), (torch.stack(row),))
            await _send_piece(writer, encoder.encode(batch))
        await _send_piece(writer, encoder.end())
        await _send_piece(writer, b"")


async def _send_piece(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """A chunk of HTTP, the last one if it is empty."""
    writer.write(b"%x\r\n" % len(piece))
    writer.write(piece)
    writer.write(b"\r\n")
    await writer.drain()
