"""A host of the testbed: how a command is run there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hapi.machine import processors

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Host:
    """Where commands run: in which namespaces (`enter`, put before a command) and on which processors.

    Without `cpus` a command may run on every processor.
    """

    name: str
    address: str
    enter: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def processors(self) -> int:
        """How many a command may run on."""
        return len(self.cpus) or processors()

    @property
    def prefix(self) -> list[str]:
        """What stands before a command to run it here."""
        pinned = ["taskset", "-c", ",".join(map(str, self.cpus))] if self.cpus else []
        return [*self.enter, *pinned]

    def command(self, *words: str) -> list[str]:
        """A command as it is run here."""
        return [*self.prefix, *words]

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of a command here: as many threads as a machine with these processors has, and no proxy between the hosts."""
        known = {name: value for name, value in os.environ.items() if name not in PROXIES}
        threads = {name: str(len(self.cpus)) for name in ONE_THREAD} if self.cpus else {}
        return {**known, **threads, **self.variables, **(variables or {})}


def divide_processors(usable: Sequence[int], storage: int = 1, compute: int = 1) -> tuple[tuple[int, ...], ...]:
    """(processors of the storage host, of the compute host): the first ones, none shared; both empty if too few."""
    usable = sorted(usable)
    if len(usable) < storage + compute or shutil.which("taskset") is None:
        return (), ()
    return tuple(usable[:storage]), tuple(usable[storage : storage + compute])
