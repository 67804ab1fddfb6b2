"""A thin link on one machine without privileges: a TCP relay in front of a server that holds a set rate.

All connections share the rate, as they would share a cable; each direction has its own. Back-pressure reaches the
sender, because the relay reads no more than it may send. It adds no delay of its own and cannot drop packets: network
namespaces with `tc` are closer to a real network where root is at hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 16 * 1024
SLACK_SECONDS = 0.002  # timers are no finer than this; sleeping for less would only lose rate
START_SECONDS = 10.0


@dataclass
class Pacer:
    """Reserves time on a link of `bits_per_s` for pieces of data, in the order in which they come."""

    bits_per_s: float
    bytes_sent: int = 0
    _free_at: float = field(default=0.0, repr=False)

    def reserve(self, size: int, now: float) -> float:
        """Seconds from `now` until the link has carried `size` more bytes."""
        self._free_at = max(self._free_at, now) + size * 8 / self.bits_per_s
        self.bytes_sent += size
        return self._free_at - now


@dataclass(frozen=True)
class ThinLink:
    """A running relay: `url` is the server's address as seen from the far side of the link."""

    url: str
    to_client: Pacer
    to_server: Pacer


@contextlib.contextmanager
def thin_link(
    server_url: str, bits_per_s: float = 1e15, *, pacers: tuple[Pacer, Pacer] | None = None
) -> Iterator[ThinLink]:
    """Runs a relay to `server_url` on a free loopback port for as long as the context lasts.

    Relays with the same `pacers` (to the client, to the server) share their rates, as servers behind one cable do.
    """
    parts = urlsplit(server_url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"{server_url!r}: a thin link needs a URL with host and port, like http://127.0.0.1:8470")
    to_client, to_server = pacers or (Pacer(bits_per_s), Pacer(bits_per_s))
    relay = _Relay(parts.hostname, parts.port, to_client, to_server)
    thread = threading.Thread(target=relay.run, name="thin-link", daemon=True)
    thread.start()
    try:
        port = relay.wait_for_port()
        yield ThinLink(urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}")), to_client, to_server)
    finally:
        relay.stop()
        thread.join(START_SECONDS)


class _Relay:
    """The event loop of one link, in a thread of its own."""

    def __init__(self, host: str, port: int, to_client: Pacer, to_server: Pacer) -> None:
        self._target = (host, port)
        self._to_client, self._to_server = to_client, to_server
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listening = threading.Event()
        self._port = 0
        self._connections: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._listening.set()  # also after a failure, so that nobody waits for a port that will not come
            self._loop.close()

    def wait_for_port(self) -> int:
        self._listening.wait(START_SECONDS)
        if not self._port:
            raise RuntimeError("the thin link could not listen on a loopback port")
        return self._port

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self._port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stopping.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side is gone or the link is taken down: what is left to do is to close both
        finally:
            self._connections.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target, limit=CHUNK_BYTES)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, far_writer, self._to_server))
                both.create_task(_pump(far_reader, writer, self._to_client))
        except* OSError:
            pass  # a reset on one side ends the connection on both
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pacer: Pacer) -> None:
    loop = asyncio.get_running_loop()
    while chunk := await reader.read(CHUNK_BYTES):
        wait = pacer.reserve(len(chunk), loop.time())
        if wait > SLACK_SECONDS:
            await asyncio.sleep(wait)
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
