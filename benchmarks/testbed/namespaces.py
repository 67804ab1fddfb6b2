"""Two hosts on one machine: two network namespaces, joined by a veth pair whose both ends are shaped by tbf.

The namespaces have no names: they live as long as a process is in them, so nothing can be left behind, and any number
of testbeds live side by side. Root makes them directly; anybody else inside of a user namespace, where the kernel
allows that (`unshare -Urn`). Linux with iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hapi.errors import HapiError

STORAGE_ADDRESS, COMPUTE_ADDRESS = "10.77.0.1", "10.77.0.2"
STORAGE_DEVICE, COMPUTE_DEVICE = "eth-s", "eth-c"
TOOLS = ("unshare", "nsenter", "ip", "tc", "sleep")
QUEUE_SECONDS = 0.02
"""How long a packet may wait at the shaper: a queue of a small router."""
QUEUED_PACKETS, QUEUED_EACH = 64, 2
"""Super-packets for which the shaper has room at least, and those of one connection that may wait there. With room for
all, none is lost, and connections that have something to send take turns, as in routers that queue fairly. Without
that, one of four over a slow link was given a fifth of its part for seconds (by BBR most, by Reno too), and as samples
are handed out in order, the other three waited for it."""
PACKET_SECONDS, LEAST_PACKET = 0.01, 2048
"""What a super-packet takes of a slow link at most, and bytes of one that has room for a frame and its headers. With 16
KiB, 0.6 Mbit/s would have packets of 0.2 s, which stand in the way of all others as no network's do."""
HEADERS_PART = 0.06
"""Headers over contents, of the segments of a super-packet: tbf counts 66 bytes or more for 1,448."""
START_SECONDS = 10.0
PLAIN_USER = 65534
"""Who a program is inside of a user namespace, if it is root outside: servers that drop root's rights cannot there."""

Run = Callable[[Sequence[str]], str]


class NamespaceError(HapiError):
    """This machine gave no network namespaces, or one of their commands failed."""

    kind = "no-namespaces"


class Namespaces:
    """A pair of hosts. `start` begins a process that must live as long as they shall, and answers its id."""

    def __init__(self, start: Callable[[Sequence[str]], int], *, rootless: bool, run: Run | None = None) -> None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise NamespaceError(f"network namespaces need {', '.join(missing)}. Install iproute2 and util-linux.")
        self.rootless = rootless
        self._run = run or run_tool
        user = ["-U", "-r"] if rootless else []
        self._compute = start(["unshare", *user, "-n", "sleep", "infinity"])
        _wait_until_apart(self._compute)
        self._storage = start([*self.enter_compute(), "unshare", "-n", "sleep", "infinity"])
        _wait_until_apart(self._storage, self._compute)
        self._join()

    def enter_storage(self) -> list[str]:
        """What stands before a command to run it in the storage host, with rights over its network."""
        return self._enter(self._storage)

    def enter_compute(self) -> list[str]:
        """The same for the compute host."""
        return self._enter(self._compute)

    def user(self) -> list[str]:
        """What follows to run an ordinary program: without those rights, where they came from a user namespace."""
        who = os.getuid() or PLAIN_USER
        return ["unshare", "-U", f"--map-user={who}", f"--map-group={who}"] if self.rootless else []

    def shape(self, bits_per_s: float | None) -> None:
        """Sets the rate of both directions; None takes the limit away."""
        for enter, device in ((self.enter_storage(), STORAGE_DEVICE), (self.enter_compute(), COMPUTE_DEVICE)):
            for words in (*packet_sizes(device, bits_per_s), waiting_bytes(bits_per_s)):
                with contextlib.suppress(NamespaceError):  # iproute2 before 6.3 does not know all, nor do old kernels
                    self._run([*enter, *words])
            self._run([*enter, *shaping(device, bits_per_s)])

    def carried(self) -> tuple[int, int]:
        """Bytes that arrived so far (at the compute host, at the storage host), with all headers."""
        shown: Any = json.loads(self._run([*self.enter_compute(), "ip", "-j", "-s", "link", "show", COMPUTE_DEVICE]))
        statistics = shown[0]["stats64"]
        return int(statistics["rx"]["bytes"]), int(statistics["tx"]["bytes"])

    def _enter(self, process: int) -> list[str]:
        user = ["-U", "--preserve-credentials"] if self.rootless else []
        return ["nsenter", "-t", str(process), *user, "-n"]

    def _join(self) -> None:
        storage, compute = self.enter_storage(), self.enter_compute()
        pair = ["type", "veth", "peer", "name", STORAGE_DEVICE]
        self._run([*compute, "ip", "link", "add", COMPUTE_DEVICE, *pair])
        self._run([*compute, "ip", "link", "set", STORAGE_DEVICE, "netns", str(self._storage)])
        ends = ((storage, STORAGE_DEVICE, STORAGE_ADDRESS), (compute, COMPUTE_DEVICE, COMPUTE_ADDRESS))
        for enter, device, address in ends:
            self._run([*enter, "ip", "addr", "add", f"{address}/24", "dev", device])
            self._run([*enter, "ip", "link", "set", device, "up"])
            self._run([*enter, "ip", "link", "set", "lo", "up"])


def shaping(device: str, bits_per_s: float | None) -> list[str]:
    """The command that shapes one end; None for a queue that never holds anything back.

    The bucket holds one super-packet of the kernel with a header for each of its segments, or tbf would split each into
    frames, of which the client then reads one at a time; and about a millisecond of the rate, or the timer would show;
    no more, as what it holds passes at once.
    """
    replace = ["tc", "qdisc", "replace", "dev", device, "root"]
    if bits_per_s is None:
        return [*replace, "pfifo", "limit", "1000"]
    burst = int(max(super_packet(bits_per_s) * (1 + HEADERS_PART) + 1500, bits_per_s / 8 / 1000))
    limit = int(burst + max(bits_per_s / 8 * QUEUE_SECONDS, QUEUED_PACKETS * super_packet(bits_per_s)))
    return [*replace, "tbf", "rate", f"{int(bits_per_s)}bit", "burst", f"{burst}b", "limit", f"{limit}b"]


def packet_sizes(device: str, bits_per_s: float | None) -> list[list[str]]:
    """Commands that keep the kernel's super-packets small enough for the shaper's bucket; not all exist everywhere."""
    size = str(super_packet(bits_per_s))
    return [["ip", "link", "set", device, name, size] for name in ("gso_max_size", "gso_ipv4_max_size")]


def waiting_bytes(bits_per_s: float | None) -> list[str]:
    """The command that bounds what one connection of a host may have waiting at its shaper (TCP small queues)."""
    size = QUEUED_EACH * super_packet(bits_per_s)
    return ["sh", "-c", f"echo {size} > /proc/sys/net/ipv4/tcp_limit_output_bytes"]


def super_packet(bits_per_s: float | None) -> int:
    """Bytes: 64 KiB at high rates, where each costs processor time; a quarter at low ones, where each is a burst, and
    what takes PACKET_SECONDS where that is less, though a frame at least."""
    if bits_per_s is None or bits_per_s >= 5e8:
        return 65536
    return int(min(max(bits_per_s / 8 * PACKET_SECONDS, LEAST_PACKET), 16384))


def run_tool(command: Sequence[str]) -> str:
    """Runs a command of the system; NamespaceError with what it said, if it fails."""
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=60)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise NamespaceError(f"{' '.join(command)} failed: {said}. `--testbed relay` does without namespaces.")
    return done.stdout


def _wait_until_apart(process: int, other: int | None = None) -> None:
    """Until the process is in a network namespace that is not ours, nor that of `other`."""
    here = {_namespace(os.getpid()), *([_namespace(other)] if other else [])}
    deadline = time.monotonic() + START_SECONDS
    while (theirs := _namespace(process)) is not None and time.monotonic() < deadline:
        if theirs not in here:
            return
        time.sleep(0.01)
    raise NamespaceError(
        "this machine gives no network namespaces: neither root's right to administer the network nor user namespaces. "
        "`--testbed relay` does without."
    )


def _namespace(process: int) -> str | None:
    try:
        return os.readlink(Path("/proc") / str(process) / "ns" / "net")
    except OSError:  # it has ended
        return None
