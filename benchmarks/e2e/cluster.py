"""A Ray cluster of two nodes, one per host of the testbed: to that peer what `hapi serve` is to ours."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.baselines.raydata import RESOURCE
from benchmarks.testbed.host import Host
from benchmarks.testbed.processes import ProgramFailedError, end_group
from benchmarks.testbed.testbed import Testbed
from hapi.errors import InputError

STORE_BYTES = 400_000_000
"""Of the shared memory of each node, at most."""
PORT = 6379
START_SECONDS = 120.0
NO_DASHBOARD = ("--include-dashboard", "false")
STARTED = "Ray runtime started"
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing runs any more when a node is ended
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the head's address, and that of the compute host's node."""

    address: str
    node_address: str


@contextlib.contextmanager
def ray_cluster(bed: Testbed, variables: Mapping[str, str]) -> Iterator[Cluster]:
    """A node on each host for as long as the context lasts; only the storage host's runs tasks.

    InputError for a testbed without namespaces: nodes speak to one another directly, at ports of their own choice, so
    nothing else could shape what they send.
    """
    if bed.kind != "namespaces":
        raise InputError(
            f"ray: its nodes speak to one another directly, which a testbed of the kind {bed.kind!r} cannot shape. "
            "Use --testbed namespaces."
        )
    head = f"{bed.storage.address}:{PORT}"
    first = [*first_node(PORT, bed.folder / "ray"), "--num-cpus", str(len(bed.storage.cpus) or 1)]
    second = ["--address", head, "--num-cpus", "0"]
    with ray_node(bed.storage, first, variables), ray_node(bed.compute, second, variables):
        yield Cluster(head, bed.compute.address)


def first_node(port: int, folder: Path) -> list[str]:
    """Options of the storage host's node, which leads the cluster and offers what the tasks ask for."""
    offered = json.dumps({RESOURCE: 1})
    return ["--head", "--port", str(port), "--temp-dir", str(folder), "--resources", offered, *NO_DASHBOARD]


@contextlib.contextmanager
def ray_node(host: Host, words: Sequence[str], variables: Mapping[str, str]) -> Iterator[None]:
    """`ray start --block` on a host, until it says that it runs; ended with all that it began."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", host.address]
    process = subprocess.Popen(
        host.command(*command, "--object-store-memory", str(STORE_BYTES), "--disable-usage-stats", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=host.environment({**variables, **VARIABLES}),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        _wait_until_started(process.stdout, host.name)
        yield
    finally:
        end_group(process)
        process.stdout.close()


def _wait_until_started(said: IO[str], host: str) -> None:
    """Reads what a node says, also later on, so that it never waits for a reader."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError):  # it was closed
            for line in said:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    heard: list[str] = []
    while True:
        try:
            line = lines.get(timeout=START_SECONDS)
        except queue.Empty:
            line = None
        if line is None:
            told = "".join(heard)[-600:].strip()
            raise ProgramFailedError(f"ray: its node on the {host} host did not start: {told or '(no words)'}")
        if STARTED in line:
            return
        heard.append(line)
