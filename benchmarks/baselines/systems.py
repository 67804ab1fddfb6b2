"""The systems that `hapi bench` compares, by name: how each is run as a process of its own on the compute host."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.baselines.peers import PeerMissingError, check_installed
from benchmarks.baselines.published import freeze_cut

PLAIN = "plain"
LEAST_WORKERS, MOST_WORKERS = 2, 8
"""DataLoader workers of the baselines: one per processor of the compute host, and at most as many as ours has threads.
On one processor it is two: with one the link rests while it decodes, and more gain nothing (mobilenet_v2 at rho 4)."""
PUSHDOWN = {"none": "none", "all": "all", "paper": "paper", "paper-v1": "paper-v1", "single": "single", "mix": "auto"}
"""What `hapi train --pushdown` is given; `static` is decided per model."""
RECOMPUTES = ("paper", "paper-v1")
"""The published system keeps no features: every epoch computes them anew."""
CLIENTS = {
    PLAIN: "plain",
    "plain-channels-last": "plain",
    "precompute": "precompute",
    "s3torchconnector": "connector",
    "webdataset": "tarred",
    "ray": "raydata",
}
"""The systems without HAPI: each a module of this package that is run as a program."""
PEERS = ("precompute", "s3torchconnector", "webdataset", "ray")
"""Those that stand for what people use instead."""
PACKAGES = {"s3torchconnector": "s3torchconnector", "webdataset": "webdataset", "ray": "ray"}
"""What must be installed for a peer."""
OWN_OPTIONS = {"plain-channels-last": ("--channels-last",)}
SYSTEMS = (*CLIENTS, "none", "all", "static", "paper", "paper-v1", "single", "mix")


@dataclass(frozen=True)
class Job:
    """What every system is asked to do; the same for all, with the same losses as a result."""

    data: str
    model: str
    weights: str
    epochs: int
    batch_size: int
    seed: int = 0
    device: str = "cpu"
    server: str | None = None
    """Address of the storage server, as the client reaches it."""
    options: tuple[str, ...] = ()
    """Further ones of `hapi train`."""
    own: tuple[str, ...] = ()
    """Those of a peer alone: where its shards or its cluster are."""
    processors: int = 1
    """Of the compute host."""

    def words(self) -> list[str]:
        """The options that the baseline and `hapi train` have in common."""
        return [
            "--data", self.data, "--model", self.model, "--weights", self.weights, "--epochs", str(self.epochs),
            "--batch-size", str(self.batch_size), "--seed", str(self.seed), "--val-split", "0", "--device", self.device,
        ]  # fmt: skip


def workers_of(processors: int) -> int:
    """Of a DataLoader on a host with so many processors."""
    return max(LEAST_WORKERS, min(MOST_WORKERS, processors))


def check_peer(system: str) -> None:
    """PeerMissingError for a peer whose package is not installed."""
    if system in PACKAGES:
        check_installed(PACKAGES[system])


def is_installed(system: str) -> bool:
    """Whether a system's package is there; HAPI's own and plain PyTorch always are."""
    try:
        check_peer(system)
    except PeerMissingError:
        return False
    return True


def needs_server(system: str) -> bool:
    """Whether the system talks to a storage server."""
    return system not in CLIENTS


def note_of(system: str, epochs: int) -> str:
    """What must be known of a row of the system, whatever its numbers are."""
    if system == "webdataset":
        return "trains in an order of its own"
    if system == "ray" and epochs > 1:
        return "trains in an order of its own after the first epoch"
    return ""


def command_of(system: str, job: Job) -> list[str]:
    """The command line of a system; it prints one JSON document."""
    if system in CLIENTS:
        more = ["--num-workers", str(workers_of(job.processors)), *OWN_OPTIONS.get(system, ()), *job.own]
        return [sys.executable, "-m", f"benchmarks.baselines.{CLIENTS[system]}", *job.words(), *more]
    pushdown = freeze_cut(job.model) if system == "static" else PUSHDOWN[system]
    regime = ["--cache-bytes", "0"] if system in RECOMPUTES else []
    train = [sys.executable, "-m", "hapi.cli", "train", "--json", *job.words(), "--pushdown", pushdown, *regime]
    return [*train, *(["--server", job.server] if job.server else []), *job.options]
