"""Some tenants in one process of the compute host: what each takes on a real server, and the profile of both hosts.

It is started by benchmarks.simulate.check on the compute host, reads the JSON document in HAPI_FLEET and prints one:
the link and the profile as they were measured there, before and after, and the seconds of every case.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.tenants.jobs import Network
from compute_client.loader import DataLoader
from compute_client.planning import PROFILE_REPEATS, PROFILE_SECONDS
from compute_client.streams import contending
from hapi.allocator import keep_freed_memory
from hapi.plan import Profile
from hapi.wire import Allowed
from profiler.calibration import calibrated
from profiler.remote import ServerClient
from profiler.tiers import Job, profile_with_server

WANTED = "HAPI_FLEET"
BATCH_SIZE = 32
_BATCHES = re.compile(r"^hapi_batch_samples_(sum|count) (\S+)$", re.MULTILINE)
WARM_UPS = 4
"""Passes that are not timed, at most: the server tries batch sizes in them."""
PROFILED_SAMPLES = 64


@dataclass(frozen=True)
class Wanted:
    """What the process is asked: cases are (cut as a part of the network's depth, tenants)."""

    url: str
    tokens: tuple[str | None, ...]
    data: str
    model: str
    samples: int
    """Of one tenant; each has photographs of its own."""
    cases: tuple[tuple[float, int], ...]
    repeats: int


class Fleet:
    """Tenants with tokens of their own, and photographs of their own, of one network."""

    def __init__(self, wanted: Wanted) -> None:
        self.network = Network.load(wanted.model)
        self._wanted = wanted
        self._clients = [ServerClient(wanted.url, token) for token in wanted.tokens]

    def profile(self) -> Profile:
        """The link, and the costs of every cut on both hosts, as they are measured for a plan; those of the cases' cuts
        with both hosts at work, as in a long stream."""
        first = self._clients[0]
        dataset = first.register(self._wanted.data)
        first.ensure_model(self.network.graph)
        job = Job(
            self._wanted.samples,
            BATCH_SIZE,
            allowed=Allowed(),
            engine="eager",
            repeats=PROFILE_REPEATS,
            limit_seconds=PROFILE_SECONDS,
        )
        network, cuts = self.network, [self.network.cut_at(depth).name for depth, _ in self._wanted.cases]
        alone = profile_with_server(
            first, network.graph, dataset, network.transform, job, samples=PROFILED_SAMPLES, refresh=True
        )
        assert alone.link is not None  # measured with the rest
        names = tuple(dict.fromkeys(cuts))
        paces = contending(alone, first, self._wanted.data, network.graph, network.transform, dataset, job, names)
        return calibrated(alone, paces, alone.link)

    def loaders(self, cut: str, tenants: int) -> list[DataLoader]:
        """One per tenant, that keeps nothing: every pass asks the server anew."""
        samples = self._wanted.samples
        made = []
        for number in range(tenants):
            loader = DataLoader(
                self._wanted.data,
                backbone=self.network.graph,
                transform=self.network.transform,
                server=self._clients[number],
                pushdown=cut,
                batch_size=BATCH_SIZE,
                compression="none",
                engine="eager",
                cache_bytes=0,
                indices=range(number * samples, (number + 1) * samples),
            )
            loader.warm_up()
            made.append(loader)
        return made

    def settled(self) -> bool:
        """Whether the server has found its batch sizes."""
        return all(prefix.reason != "exploring" for prefix in self._clients[0].status().prefixes)

    def batches(self) -> tuple[float, float]:
        """(samples, batches) that the server has computed so far."""
        token = self._wanted.tokens[0]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(f"{self._wanted.url}/metrics", headers=headers, timeout=60.0).raise_for_status()
        found = {name: float(value) for name, value in _BATCHES.findall(answer.text)}
        return found["sum"], found["count"]


def together(loaders: Sequence[DataLoader]) -> float:
    """Seconds from a common start until the last tenant has its last batch. Raises what a tenant raised."""
    barrier, ends, errors = threading.Barrier(len(loaders) + 1), list[float](), list[Exception]()

    def work(loader: DataLoader) -> None:
        barrier.wait()
        try:
            for _ in loader:
                pass
        except Exception as error:
            errors.append(error)
        ends.append(time.perf_counter())

    threads = [threading.Thread(target=work, args=(loader,)) for loader in loaders]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return max(ends) - begun


def measure(wanted: Wanted) -> dict[str, Any]:
    """The document that is printed. Both profiles are of a server that has found its batch sizes, as the cases are."""
    fleet = Fleet(wanted)
    loaders = warmed(fleet, wanted)
    profiles = [fleet.profile()]
    cases = measured_cases(fleet, wanted, loaders)
    profiles.append(fleet.profile())
    return {"profiles": [profile.to_json() for profile in profiles], "cases": cases}


def warmed(fleet: Fleet, wanted: Wanted) -> dict[float, list[DataLoader]]:
    """By its cut, the loaders of as many tenants as it has at most, after the server has tried batch sizes for them."""
    made = {}
    for cut in dict.fromkeys(cut for cut, _ in wanted.cases):
        most = max(tenants for other, tenants in wanted.cases if other == cut)
        made[cut] = fleet.loaders(fleet.network.cut_at(cut).name, most)
        for _ in range(WARM_UPS):
            together(made[cut])
            if fleet.settled():
                break
    return made


def measured_cases(fleet: Fleet, wanted: Wanted, warm: Mapping[float, Sequence[DataLoader]]) -> list[dict[str, Any]]:
    """One object per case."""
    cases = []
    for cut, loaders in warm.items():
        name = fleet.network.cut_at(cut).name
        for tenants in [tenants for other, tenants in wanted.cases if other == cut]:
            received = sum(loader.stats.bytes_received for loader in loaders)
            samples, batches = fleet.batches()
            seconds = [together(loaders[:tenants]) for _ in range(wanted.repeats)]
            received = sum(loader.stats.bytes_received for loader in loaders) - received
            samples, batches = (now - then for now, then in zip(fleet.batches(), (samples, batches), strict=True))
            cases.append(
                {
                    "cut": name,
                    "tenants": tenants,
                    "seconds": seconds,
                    "bytes": received // wanted.repeats,
                    "batch": max(1, round(samples / max(1.0, batches))),
                }
            )
    return cases


def main() -> None:
    """Reads what is wanted, prints what was measured."""
    keep_freed_memory()
    document = json.loads(os.environ[WANTED])
    document["tokens"] = tuple(document["tokens"])
    document["cases"] = tuple((cut, tenants) for cut, tenants in document["cases"])
    print(json.dumps(measure(Wanted(**document))))


if __name__ == "__main__":
    main()
