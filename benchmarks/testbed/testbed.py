"""The testbed: two hosts, the link between them, and what runs on them; everything ends with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.testbed.host import Host, divide_processors
from benchmarks.testbed.keeper import GRACE_SECONDS, MARK, marked
from benchmarks.testbed.links import RelayLink, ShapedLink, TestbedLink
from benchmarks.testbed.namespaces import COMPUTE_ADDRESS, STORAGE_ADDRESS, NamespaceError, Namespaces
from benchmarks.testbed.processes import Outcome, run_program
from hapi.errors import InputError

Kind = Literal["auto", "namespaces", "relay"]
KINDS: tuple[Kind, ...] = ("auto", "namespaces", "relay")
HOST = "HAPI_TESTBED_HOST"
LOOPBACK = "127.0.0.1"
FETCH_SECONDS = 60.0
_FETCH = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(r.Request(sys.argv[1])).read())"


@dataclass(frozen=True)
class Testbed:
    """Two hosts and the link between them. `folder` is for anything that may go away with the testbed."""

    kind: str
    storage: Host
    compute: Host
    link: TestbedLink
    folder: Path
    mark: str
    remarks: tuple[str, ...] = ()

    def run(
        self,
        host: Host,
        words: Sequence[str],
        variables: Mapping[str, str] | None = None,
        *,
        seconds: float | None = None,
    ) -> Outcome:
        """Runs a program on a host for the JSON document that it prints; ProgramFailedError says why there is none."""
        return run_program(host.command(*words), host.environment(variables), timeout_seconds=seconds)

    def fetch(self, url: str) -> str:
        """The text that a server of the storage host gives, asked from there: it does not cross the link. Nothing if it
        gives none: what is told beside a measurement does not fail it."""
        command = self.storage.command(sys.executable, "-I", "-c", _FETCH, url)
        environment = self.storage.environment()
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=FETCH_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def cpu_seconds(self, host: Host) -> float:
        """Processor seconds so far of the processes that live on a host, with those of their ended children."""
        total = 0.0
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(HOST) == host.name:
                    times = process.cpu_times()
                    total += times.user + times.system
                    total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return total


@contextlib.contextmanager
def open_testbed(
    kind: str = "auto", *, storage_cpus: int = 1, compute_cpus: int = 1, link: TestbedLink | None = None
) -> Iterator[Testbed]:
    """A testbed for as long as the context lasts; `auto` takes namespaces where the machine gives them.

    With a `link` of the caller's, the storage host is elsewhere, and only the compute host is here. InputError for an
    unknown kind, NamespaceError where `namespaces` was asked for and there are none.
    """
    if kind not in KINDS:
        raise InputError(f"--testbed {kind!r}: say one of {', '.join(KINDS)}.")
    mark = secrets.token_hex(8)
    folder = Path(tempfile.mkdtemp(prefix="hapi-testbed-"))
    relay = RelayLink()
    holders: list[subprocess.Popen[bytes]] = []
    keeper = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.testbed.keeper", mark, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it: it ends after us
    )
    try:
        for_storage, for_compute = divide_processors(usable_processors(), storage_cpus, compute_cpus)
        bed = Testbed(
            kind,
            Host("storage", LOOPBACK, cpus=for_storage, variables={MARK: mark, HOST: "storage"}),
            Host("compute", LOOPBACK, cpus=for_compute, variables={MARK: mark, HOST: "compute"}),
            link or relay,
            folder,
            mark,
        )
        if link is not None:
            bed = replace(bed, kind="hosts", compute=replace(bed.compute, cpus=()))
        elif kind != "relay":
            bed = _in_namespaces(bed, holders, required=kind == "namespaces")
        yield replace(bed, remarks=(*bed.remarks, *bed.link.remarks, *_pinning(bed)))
    finally:
        relay.close()
        assert keeper.stdin is not None
        keeper.stdin.close()
        for process in (keeper, *holders):  # the keeper ends the holders of the namespaces
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(4 * GRACE_SECONDS)


def usable_processors() -> list[int]:
    """Numbers of the processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _in_namespaces(bed: Testbed, holders: list[subprocess.Popen[bytes]], *, required: bool) -> Testbed:
    """The testbed in namespaces: root's, or a user's own; as it was where there are none, unless they are required."""

    def start(words: Sequence[str]) -> int:
        null, variables = subprocess.DEVNULL, bed.storage.environment()
        holders.append(
            subprocess.Popen(list(words), stdin=null, stdout=null, stderr=null, env=variables, start_new_session=True)
        )
        return holders[-1].pid

    for rootless in (False, True) if os.geteuid() == 0 else (True,):
        try:
            pair = Namespaces(start, rootless=rootless)
            pair.shape(1e9)  # a kernel without tbf says so now
            pair.shape(None)
        except NamespaceError as error:
            reason = str(error)
            continue
        return replace(
            bed,
            kind="namespaces",
            storage=replace(bed.storage, address=STORAGE_ADDRESS, enter=(*pair.enter_storage(), *pair.user())),
            compute=replace(bed.compute, address=COMPUTE_ADDRESS, enter=(*pair.enter_compute(), *pair.user())),
            link=ShapedLink(pair),
        )
    if required:
        raise NamespaceError(reason)
    return replace(bed, kind="relay", remarks=(f"no namespaces: {reason}",))


def _pinning(bed: Testbed) -> tuple[str, ...]:
    if bed.kind == "hosts":
        return ()
    if not bed.storage.cpus:
        return ("the hosts share all processors: there are too few to give each its own (or there is no taskset)",)
    return (f"storage host on processor {_list(bed.storage.cpus)}, compute host on {_list(bed.compute.cpus)}",)


def _list(cpus: Sequence[int]) -> str:
    return ", ".join(map(str, cpus))
