"""The client of the sweep, a process that lives as long as its network: `python -m benchmarks.sweep.client`.

It reads commands as JSON lines on standard input and answers each with one JSON line on standard output. `open` loads
the network and gives it to the server, `profile` measures both tiers, `watch` runs a mix of cuts through the
DataLoader, head training included, and tells its pace.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from compute_client.streams import Streams
from hapi.allocator import keep_freed_memory
from hapi.data import TransformSpec, describe_transform
from hapi.errors import HapiError, InputError
from hapi.model import Graph, capture
from hapi.model.zoo import load_model
from hapi.plan import Link, Plan, Share
from hapi.wire.allowed import NONE, Allowed
from profiler.remote import ServerClient
from profiler.tiers import Job, profile_with_server

PROFILED_SAMPLES = 32
PROFILE_REPEATS = 5


class Client:
    """One network over one server, and the streams of it."""

    def __init__(
        self, data: str, model: str, server: str, *, weights: str, batch_size: int, device: str, engine: str
    ) -> None:
        loaded = load_model(model, weights)
        self.graph: Graph = capture(loaded.backbone, loaded.example, name=loaded.name)
        self._transform: TransformSpec = describe_transform(loaded.transform)
        self._server = ServerClient(server)
        self._batch_size, self._device, self._engine = batch_size, device, engine
        self._server.ensure_model(self.graph)
        self.dataset = self._server.register(data)
        self._streams = Streams(
            self._server,
            data,
            self.graph,
            self._transform,
            self.dataset,
            batch_size=batch_size,
            device=device,
            engine=engine,  # type: ignore[arg-type]  # checked by the loader
        )

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
        plan = Plan("given", tuple(Share(name, share) for name, share in shares), None, None)
        loader = self._streams.loader(plan)
        before, busy = loader.stats.to_json(), time.process_time()
        pace = self._streams.watch(plan, seconds, most_seconds, give_up)
        busy = time.process_time() - busy
        status = self._streams.until_idle()
        after = loader.stats.to_json()
        cuts = {name for name, _ in shares}
        arrived = sum(after["samples_by_cut"].values()) - sum(before["samples_by_cut"].values())
        return {
            **pace.to_json(),
            "fill_samples": self._streams.fill_samples(plan),
            "arrived_samples": arrived,
            "bytes_received": after["bytes_received"] - before["bytes_received"],
            "requests": after["requests"] - before["requests"],
            "retries": after["retries"] - before["retries"],
            "client_cpu_seconds": busy,
            "server_batches": {prefix.cut: prefix.batch for prefix in status.prefixes if prefix.cut in cuts},
        }


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
