"""What a disturbed training needs around it: hosts, store, server, and how to run one of either system."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from benchmarks.baselines.systems import PLAIN, Job, command_of
from benchmarks.faults.server import KillableServer
from benchmarks.faults.training import Ended, Training
from benchmarks.objectstore import processes
from benchmarks.testbed.dialogue import Dialogue, dialogue
from benchmarks.testbed.services import Store
from benchmarks.testbed.testbed import Testbed

OURS = "mix"
TENANTS = ("first", "second")
START_SECONDS = 120.0
"""For a training to be half done, start-up included."""
END_SECONDS = 180.0
CHANGE_SECONDS = 30.0


@dataclass(frozen=True)
class Task:
    """What every training does."""

    model: str
    weights: str
    epochs: int
    batch_size: int
    seed: int
    pushdown: str
    samples: int

    @property
    def whole(self) -> int:
        """Samples of all epochs."""
        return self.epochs * self.samples


@dataclass(frozen=True)
class BadObjects:
    """Does things to the objects of photographs, quickly; `mending` undoes them."""

    talk: Dialogue
    folder: Path
    mending: ExitStack

    def lose(self, path: Path) -> None:
        """Deletes a photograph's object."""
        self._change("lose", path)

    def damage(self, path: Path) -> None:
        """Puts something else in its place."""
        self._change("damage", path)

    def _change(self, verb: str, path: Path) -> None:
        key = str(path.relative_to(self.folder))
        self.mending.callback(self.talk.ask, {"do": "restore", "key": key, "file": str(path)}, CHANGE_SECONDS)
        self.talk.ask({"do": verb, "key": key}, CHANGE_SECONDS)


@dataclass
class Lab:
    """The testbed with everything in it. `rate` is the link's, bits per second."""

    bed: Testbed
    store: Store
    photographs: Path
    server: KillableServer
    task: Task
    rate: float
    undisturbed: dict[str, Ended] = field(default_factory=dict)

    def training(
        self,
        system: str,
        *,
        tenant: str = TENANTS[0],
        epochs: int | None = None,
        retry_seconds: float = 120.0,
        skip_errors: bool = False,
        fallback: bool = False,
    ) -> Training:
        """Starts one, on the compute host."""
        variables = {**self.store.for_compute, **self.server.variables(tenant)}
        variables["XDG_CACHE_HOME"] = str(self.bed.folder / f"client-{tenant}")  # measured once for all trainings
        variables["TORCH_HOME"] = os.environ.get("TORCH_HOME") or str(Path.home() / ".cache" / "torch")
        task = replace(self.task, epochs=epochs or self.task.epochs)
        environment = self.bed.compute.environment(variables)
        if system == PLAIN:
            job = Job(
                self.store.uri, task.model, task.weights, task.epochs, task.batch_size, task.seed,
                processors=self.bed.compute.processors,
            )  # fmt: skip
            before = self._carried()
            stored = task.epochs * self.store.bytes
            command = self.bed.compute.command(*command_of(PLAIN, job))
            return Training(command, environment, lambda: (self._carried() - before) / stored)
        told = {
            "data": self.store.uri, "model": task.model, "weights": task.weights, "epochs": task.epochs,
            "batch_size": task.batch_size, "seed": task.seed, "server": self.server.url, "pushdown": task.pushdown,
            "retry_seconds": retry_seconds, "skip_errors": skip_errors, "fallback": fallback,
            "engine": "eager",
        }  # fmt: skip
        words = [sys.executable, "-m", "benchmarks.faults.trainer", json.dumps(told)]
        return Training(self.bed.compute.command(*words), environment)

    def until_middle(self, training: Training) -> None:
        """Waits until it is in the middle of an epoch."""
        training.until(int(0.4 * self.task.whole), self.task.whole, START_SECONDS)

    @contextmanager
    def store_stopped(self) -> Iterator[None]:
        """The store's processes stand still: connections stay open, nothing is answered."""
        running = processes(self.bed.folder / "store")
        try:
            _send(running, signal.SIGSTOP)
            yield
        finally:
            _send(running, signal.SIGCONT)

    @contextmanager
    def bad_objects(self) -> Iterator[BadObjects]:
        """Whatever is done to the bucket's objects is mended at the end."""
        command = [sys.executable, "-m", "benchmarks.faults.bucket", self.store.uri]
        environment = self.bed.storage.environment(self.store.for_storage)
        with dialogue(self.bed.storage.command(*command), environment) as talk, ExitStack() as mending:
            yield BadObjects(talk, self.photographs, mending)

    def pictures(self) -> list[Path]:
        """The photographs, in the order of the dataset."""
        return sorted(self.photographs.glob("*/*"))

    def _carried(self) -> float:
        carried = self.bed.link.carried()
        assert carried is not None
        return float(carried[0])


def wait(seconds: float) -> None:
    """While a fault lasts."""
    time.sleep(seconds)


def _send(running: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in running:
        os.killpg(process.pid, number)
