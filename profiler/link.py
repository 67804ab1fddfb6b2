"""What the network between the tiers gives: latency and bandwidth, measured with a bounded number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TypeAlias

from hapi.backoff import QUICK, again
from hapi.errors import ServerUnreachableError
from hapi.plan import Link

Fetch: TypeAlias = Callable[[int], Iterable[bytes]]
"""Asks the other side for so many bytes and gives them as they arrive. Called from several threads."""

FIRST_BYTES = 2**16
MAX_BYTES = 2**28
HEADROOM = 1.25
"""A transfer is made so many times as large as should last long enough."""
STREAMS = 4
"""Several connections, as the loader has several requests in flight: one TCP stream often fills no fast link."""
LATENCY_PROBES = 5
IN_TURN = replace(QUICK, busy_seconds=120.0)
"""Patience with a server that others probe: it lets few do so at once, as they would measure one another."""


def probe_link(
    fetch: Fetch,
    *,
    seconds: float = 0.5,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = 5.0,
    streams: int = STREAMS,
    first_bytes: int = FIRST_BYTES,
    latency_probes: int = LATENCY_PROBES,
    most_latency: float = math.inf,
    clock: Callable[[], float] = perf_counter,
) -> Link:
    """Measures a link through `fetch`.

    Latency is the median of a few one-byte requests. Then transfers grow, from `first_bytes`, until one lasts `seconds`
    longer than that (long enough to outlast a traffic shaper's burst), or `max_bytes` are spent in all; that last one
    gives the bandwidth. Nothing is read any more after `max_seconds`. Latency counts as `most_latency` at most: beside
    other traffic what is more is time behind that, of which the link would seem faster than it is. Raises
    ServerUnreachableError if nothing arrives, and whatever `fetch` raises.
    """
    began = clock()
    deadline = began + max_seconds
    latencies: list[float] = []
    while len(latencies) < latency_probes and (not latencies or clock() < deadline):
        started = clock()
        _drain(fetch, 1, deadline, clock)
        latencies.append(clock() - started)
    latency = min(median(latencies), most_latency)
    size, spent, rate = min(first_bytes, max_bytes), 0, 0.0
    while not rate or clock() < deadline:
        started = clock()
        received = _transfer(fetch, size, streams, deadline, clock)
        elapsed = clock() - started
        spent += received
        if received == 0:
            raise ServerUnreachableError("link probe: the other side answered, but sent none of the bytes asked for.")
        # the first byte's way is no transfer, but is not trusted to be more than half of it
        rate = received / max(elapsed - latency, elapsed / 2, 1e-9)
        if elapsed - latency >= seconds:
            break
        larger = min(max(4 * size, int(rate * seconds * HEADROOM)), 64 * size, max_bytes - spent)
        if larger <= size:  # the budget's rest would say less than what is known already
            break
        size = larger
    return Link(bandwidth_bits_per_s=8 * rate, latency_seconds=latency)


def probe_in_turn(fetch: Fetch, probe: Callable[[Fetch], Link] = probe_link) -> Link:
    """The same, anew when the server says so while others probe it; BusyError if that goes on for minutes."""
    return again(lambda: probe(fetch), IN_TURN)


def _transfer(fetch: Fetch, size: int, streams: int, deadline: float, clock: Callable[[], float]) -> int:
    share = -(-size // streams)
    if streams == 1:
        return _drain(fetch, share, deadline, clock)
    with ThreadPoolExecutor(streams, thread_name_prefix="hapi-probe") as pool:
        return sum(pool.map(lambda _: _drain(fetch, share, deadline, clock), range(streams)))


def _drain(fetch: Fetch, size: int, deadline: float, clock: Callable[[], float]) -> int:
    """Reads an answer to its end or to the deadline; the bytes that came."""
    received = 0
    chunks = iter(fetch(size))
    close = getattr(chunks, "close", None)
    try:
        for chunk in chunks:
            received += len(chunk)
            if clock() > deadline:
                break
    finally:
        if close is not None:
            close()
    return received
