"""The server that tenants meet: `hapi serve`, or one with another batch policy, under one memory limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cgroup import MemoryGroup, NoControlGroupError, memory_group
from benchmarks.localserver import SERVE, is_alive, local_server
from benchmarks.tenants.clients import Address
from benchmarks.tenants.jobs import Network
from benchmarks.testbed.host import Host, divide_processors
from benchmarks.testbed.testbed import LOOPBACK, usable_processors
from hapi.wire.protocol import ServerStatus
from profiler.remote import ServerClient

OPERATOR = "operator"
OURS = "ours"
COUNTERS = {
    "hapi_batch_samples_count": "batches",
    "hapi_batch_samples_sum": "samples_computed",
    "hapi_out_of_memory_total": "out_of_memory",
    "hapi_memory_releases": "memory_releases",
}
"""Metrics that explain a slow run, and their keys in the row."""


@dataclass(frozen=True)
class TenantServer:
    """A running server, its address for tenants, and its control group, if there is one."""

    address: Address
    group: MemoryGroup | None
    pid: int

    def status(self) -> ServerStatus:
        """As its operator sees it."""
        with self.address.client(OPERATOR) as client:
            return client.status()

    def counters(self) -> dict[str, float]:
        """What tells why it was slow, since it started: batches, those that ran out of memory, releases, page faults.

        Major faults are pages read from disk: those of weights, where the kernel took them back to make room. The
        processor's seconds hardly depend on what else the machine does.
        """
        headers = {"Authorization": f"Bearer {self.address.tokens[OPERATOR]}"}
        answer = httpx.get(f"{self.address.url}/metrics", headers=headers, timeout=60.0).raise_for_status()
        found = {
            COUNTERS[sample.name]: sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name in COUNTERS
        }
        used = psutil.Process(self.pid).cpu_times()
        faults = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[9]  # see proc(5), majflt
        return {**found, "major_faults": float(faults), "cpu_seconds": used.user + used.system}

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return is_alive(self.pid)

    @property
    def kills(self) -> int:
        """How often the kernel killed for memory in its group."""
        return self.group.kills if self.group else 0

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that the kernel counted, file cache included."""
        return self.group.peak_bytes if self.group else None


@contextlib.contextmanager
def tenant_server(
    photographs: Path,
    networks: Sequence[Network],
    tenants: Sequence[str],
    *,
    system: str = OURS,
    budget_bytes: int | None = None,
    limit_bytes: int | None = None,
    cached: bool = False,
) -> Iterator[TenantServer]:
    """A server that knows the photographs and the networks, on the first processor where there are two.

    Meanwhile the calling thread, and clients in threads that it starts, keep off that processor. `budget_bytes` is its
    --memory-budget, `limit_bytes` that of its control group. Without `cached` it keeps no features: every sample of
    every job is computed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hapi-tenants-")))
        tokens = {name: secrets.token_urlsafe(24) for name in (OPERATOR, *tenants)}
        group = _group(stack, limit_bytes)
        usable = usable_processors()
        host = Host("storage", LOOPBACK, cpus=divide_processors(usable)[0])
        variables = {"HAPI_SERVER_ENGINE": "eager"}  # compiling in the background would be in one of two runs
        if not cached:
            variables |= {"HAPI_SERVER_FEATURE_CACHE_BYTES": "0", "HAPI_SERVER_FEATURE_DISK_BYTES": "0"}
        options = ["--tokens", str(_tokens_file(folder, tokens))]
        if budget_bytes is not None:
            options += ["--memory-budget", str(budget_bytes)]
        server = stack.enter_context(
            local_server(
                photographs,
                options=options,
                environment=host.environment(variables),
                prefix=[*host.prefix, *(group.command() if group else [])],
                program=program_of(system),
            )
        )
        stack.enter_context(_kept_off(host.cpus, usable))
        with ServerClient(server.url, tokens[OPERATOR]) as client:
            dataset = client.register(photographs.as_uri()).digest
            for network in networks:
                client.ensure_model(network.graph)
        yield TenantServer(Address(server.url, dataset, tokens), group, server.pid)


def program_of(system: str) -> Sequence[str]:
    """`ours`, or a policy of benchmarks.policies.server."""
    if system == OURS:
        return SERVE
    return (sys.executable, "-m", "benchmarks.policies.server", "--policy", system)


@contextlib.contextmanager
def _kept_off(processors: Sequence[int], usable: Sequence[int]) -> Iterator[None]:
    """This thread, and those that it starts, use the other processors only; it is for the block."""
    if processors:
        os.sched_setaffinity(0, set(usable) - set(processors))
    try:
        yield
    finally:
        if processors:
            os.sched_setaffinity(0, usable)


def _group(stack: contextlib.ExitStack, limit_bytes: int | None) -> MemoryGroup | None:
    try:
        return stack.enter_context(memory_group(limit_bytes))
    except NoControlGroupError:
        if limit_bytes is not None:
            raise
        return None


def _tokens_file(folder: Path, tokens: dict[str, str]) -> Path:
    path = folder / "tokens.toml"
    path.touch(mode=0o600)
    lines = [f'[tenants.{name}]\ntoken = "{token}"\n' for name, token in tokens.items()]
    path.write_text("".join(lines).replace(f"[tenants.{OPERATOR}]\n", f"[tenants.{OPERATOR}]\noperator = true\n"))
    return path
