"""The client of the sweep, a process that lives as long as its network: `python -m benchmarks.sweep.client`.

It reads commands as JSON lines on standard input and answers each with one JSON line on standard output. `open` loads
the network and gives it to the server, `profile` measures both tiers, `watch` runs a mix of cuts through the
DataLoader, head training included, and tells its pace.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import nn

from benchmarks.endless import Endless
from benchmarks.sweep.pace import Rule, watch
from compute_client.loader import DataLoader
from compute_client.spans import span_size
from compute_client.train import LEARNING_RATES, MOMENTUM
from hapi.allocator import keep_freed_memory
from hapi.data import TransformSpec, describe_transform
from hapi.errors import HapiError, InputError
from hapi.model import Graph, capture
from hapi.model.zoo import load_model
from hapi.plan import INPUT, Link, Plan, Share
from hapi.wire.allowed import NONE, Allowed
from hapi.wire.protocol import ServerStatus
from profiler.remote import ServerClient
from profiler.tiers import Job, profile_with_server

IN_FLIGHT = 4
AHEAD = IN_FLIGHT
"""Requests under way, and those whose samples may wait beside them until they are taken. A loader may keep many more:
where the client sets the pace it then decodes hundreds of photographs ahead at first, instead of what is timed."""
SPAN_BYTES = 32 * 2**20
"""Most bytes of one request."""
IDLE_SECONDS = 60.0
"""A stream that is left ends at the server after what is computed at that moment: slow networks take seconds."""
PROFILED_SAMPLES = 32
PROFILE_REPEATS = 5


class Client:
    """One network over one server: a loader per mix of cuts, kept, so that only the first run of a mix sets it up."""

    def __init__(
        self, data: str, model: str, server: str, *, weights: str, batch_size: int, device: str, engine: str
    ) -> None:
        loaded = load_model(model, weights)
        self.graph: Graph = capture(loaded.backbone, loaded.example, name=loaded.name)
        self._transform: TransformSpec = describe_transform(loaded.transform)
        self._server = ServerClient(server)
        self._data, self._batch_size, self._device, self._engine = data, batch_size, device, engine
        self._server.ensure_model(self.graph)
        self.dataset = self._server.register(data)
        torch.manual_seed(0)
        self._head = nn.Linear(self.graph.output.shape[-1], max(1, len(self.dataset.classes)), device=device)
        rate = LEARNING_RATES["sgd"]
        self._optimizer = torch.optim.SGD(self._head.parameters(), lr=rate, momentum=MOMENTUM)
        self._loaders: dict[tuple[tuple[str, float], ...], DataLoader] = {}

    def profile(self, refresh: bool = False) -> dict[str, Any]:
        """Both tiers as the planner sees them; the link is known to whoever plans. `refresh`: nothing is remembered."""
        job = Job(
            samples=self.dataset.samples,
            batch_size=self._batch_size,
            classes=len(self.dataset.classes),
            device=self._device,
            allowed=Allowed(("float32",), NONE),
            repeats=PROFILE_REPEATS,
            engine=self._engine,  # type: ignore[arg-type]  # checked by the loader
        )
        link = Link(1.0)
        return profile_with_server(
            self._server,
            self.graph,
            self.dataset,
            self._transform,
            job,
            link=link,
            samples=PROFILED_SAMPLES,
            workers=torch.get_num_threads(),
            refresh=refresh,
        ).to_json()

    def watch(
        self, shares: tuple[tuple[str, float], ...], seconds: float, most_seconds: float, give_up: float | None
    ) -> dict[str, Any]:
        """The pace of a stream over a mix of cuts, and what it took: bytes, processor seconds here, and batches.

        It is given up after `most_seconds`, or when it is clear that its pace is no better than `give_up`.
        """
        loader = self._loader(shares)
        fill, together = self.fill_samples(shares), self._together(shares)
        # a batch that does not come at all ends the stream as well, when it is slower for certain
        loader.timeout = most_seconds if give_up is None else min(most_seconds, max(seconds, 2 * fill * give_up))
        rule = Rule(together, fill, seconds, most_seconds, give_up)
        before, busy = loader.stats.to_json(), time.process_time()
        with closing(iter(loader)) as batches:
            pace = watch(self._trained(batches), rule, time.perf_counter)
        busy = time.process_time() - busy
        status = self._until_idle()
        after = loader.stats.to_json()
        cuts = {name for name, _ in shares}
        arrived = sum(after["samples_by_cut"].values()) - sum(before["samples_by_cut"].values())
        return {
            **pace.to_json(),
            "fill_samples": rule.fill_samples,
            "arrived_samples": arrived,
            "bytes_received": after["bytes_received"] - before["bytes_received"],
            "requests": after["requests"] - before["requests"],
            "retries": after["retries"] - before["retries"],
            "client_cpu_seconds": busy,
            "server_batches": {prefix.cut: prefix.batch for prefix in status.prefixes if prefix.cut in cuts},
        }

    def fill_samples(self, shares: tuple[tuple[str, float], ...]) -> int:
        """Samples of the requests under way; of those that may wait too, where they are decoded or wait for others."""
        waits = len(shares) > 1 or shares[0][0] == INPUT
        return self._together(shares) * (IN_FLIGHT + AHEAD * waits) // IN_FLIGHT

    def buffer_bytes(self, shares: tuple[tuple[str, float], ...]) -> int:
        """What so many requests hold, of the cut with the largest."""
        sizes = (math.ceil(self._span(name, share) * self._sample_bytes(name)) for name, share in shares)
        return (IN_FLIGHT + AHEAD) * max(sizes)

    def _together(self, shares: tuple[tuple[str, float], ...]) -> int:
        """Samples of the requests under way, of the cut with the largest."""
        return IN_FLIGHT * max(self._span(name, share) for name, share in shares)

    def _span(self, cut: str, share: float) -> int:
        """Samples of a request, as the loader makes them."""
        size = self._sample_bytes(cut)
        return span_size(self.dataset.samples, size, limit_bytes=SPAN_BYTES, in_flight=IN_FLIGHT, share=share)

    def _sample_bytes(self, cut: str) -> float:
        """As the loader counts what is under way."""
        if cut == INPUT:
            return self.dataset.bytes / self.dataset.samples + sum(spec.bytes for spec in self.graph.inputs)
        return 2.0 * self.graph.cut(cut).bytes_per_sample

    def _trained(self, batches: Iterator[Any]) -> Iterator[int]:
        """Trains the head on each batch, and says how many samples it had."""
        for features, labels in batches:
            self._optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self._head(features), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            loss.item()
            yield len(labels)

    def _loader(self, shares: tuple[tuple[str, float], ...]) -> DataLoader:
        if shares not in self._loaders:
            cuts = tuple(Share(name, share) for name, share in shares)
            self._loaders[shares] = DataLoader(
                self._data,
                backbone=self.graph,
                transform=self._transform,
                server=self._server,
                pushdown=Plan("given", cuts, None, None),
                batch_size=self._batch_size,
                sampler=Endless(self.dataset.samples),
                compression="none",
                device=self._device,
                engine=self._engine,  # type: ignore[arg-type]
                requests_in_flight=IN_FLIGHT,
                buffer_bytes=self.buffer_bytes(shares),
                cache_bytes=0,
            )
            self._loaders[shares].warm_up()
        return self._loaders[shares]

    def _until_idle(self) -> ServerStatus:
        """The next stream must not meet what is left of this one; InputError if the server is never idle."""
        deadline = time.monotonic() + IDLE_SECONDS
        while (status := self._server.status()).requests_active or status.requests_queued:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self._server.url} still has {status.requests_active} requests under way and "
                    f"{status.requests_queued} in line, {IDLE_SECONDS:g} s after the last stream was left. "
                    "If they are somebody else's, give the server to the sweep alone."
                )
            time.sleep(0.02)
        return status


class Commands:
    """What can be asked, by name: each answers a JSON object."""

    def __init__(self) -> None:
        self._client: Client | None = None

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """InputError for a command that is not known, and whatever goes wrong."""
        name = command.pop("do", None)
        if name == "open":
            self._client = Client(**command)
            cuts = [{"name": cut.name, "bytes": cut.bytes_per_sample} for cut in self._client.graph.cuts]
            dataset = self._client.dataset
            return {"cuts": cuts, "samples": dataset.samples, "input_bytes": dataset.bytes / dataset.samples}
        if self._client is None:
            raise InputError(f"command {name!r}: `open` comes first.")
        if name == "profile":
            return self._client.profile(bool(command.get("refresh")))
        if name == "watch":
            shares = tuple((str(cut["name"]), float(cut["share"])) for cut in command["cuts"])
            return self._client.watch(shares, command["seconds"], command["most_seconds"], command.get("give_up"))
        raise InputError(f"command {name!r}: there are open, profile and watch.")


def main() -> None:
    """Answers until its standard input ends."""
    keep_freed_memory()
    commands = Commands()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = commands.do(json.loads(line))
        except HapiError as error:
            answer = {"error": {"kind": error.kind, "message": str(error)}}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
