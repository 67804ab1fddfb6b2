"""Streams of one network over one server: a loader per plan, the training of a head, and the pace they keep."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Self

import torch
from torch import nn

from compute_client.loader import DataLoader
from compute_client.spans import span_size
from compute_client.streams.endless import Endless
from compute_client.streams.pace import Pace, Rule, watch
from compute_client.train import LEARNING_RATES, MOMENTUM
from hapi.data import TransformSpec
from hapi.engine import Choice, Precision
from hapi.errors import InputError
from hapi.model import Graph
from hapi.plan import INPUT, Plan
from hapi.wire.protocol import ServerStatus
from profiler.remote import ServerClient
from profiler.tiers import Listing

IN_FLIGHT = 4
AHEAD = IN_FLIGHT
"""Requests under way, and those whose samples may wait beside them until they are taken. A loader may keep many more:
where the client sets the pace it then decodes hundreds of photographs ahead at first, instead of what is timed."""
SPAN_BYTES = 32 * 2**20
"""Most bytes of one request."""
IDLE_SECONDS = 60.0
"""A stream that is left ends at the server after what is computed at that moment: slow networks take seconds."""
SECONDS, MOST_SECONDS = 1.5, 120.0
"""For which a stream is watched once it flows, and after which one that does not become steady is given up: a slow
network needs most of a minute to replace what fills its pipeline as often as a pace takes."""


class Streams:
    """Loaders are kept, so that only the first run of a plan sets it up. Nothing is kept of features."""

    def __init__(
        self,
        server: ServerClient,
        data: str,
        graph: Graph,
        transform: TransformSpec,
        dataset: Listing,
        *,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        engine: Choice = "auto",
        precision: Precision = "float32",
    ) -> None:
        """`dataset` is what the server has listed at `data`, an address on its side; it must hold the model already."""
        self._server, self._data, self._graph, self._transform = server, data, graph, transform
        self._dataset, self._batch_size = dataset, batch_size
        self._device, self._engine, self._precision = device, engine, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._head = nn.Linear(math.prod(graph.output.shape), max(1, len(dataset.classes))).to(device)
        rate = LEARNING_RATES["sgd"]
        self._optimizer = torch.optim.SGD(self._head.parameters(), lr=rate, momentum=MOMENTUM)
        self._loaders: dict[Plan, DataLoader] = {}

    def close(self) -> None:
        """Gives all connections back."""
        for loader in self._loaders.values():
            loader.close()
        self._loaders.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pace(self, plan: Plan) -> float | None:
        """Seconds per sample of a stream by this plan; None if it does not become steady in time.

        The server must have nothing else to do and keep no features: what it keeps it does not compute (InputError).
        """
        before = _hits(self.until_idle())
        found = self.watch(plan, SECONDS, MOST_SECONDS)
        if _hits(self.until_idle()) > before:
            raise InputError(
                f"streams: {self._server.url} found features that it had kept, and computed nothing for those samples. "
                "Start one with `hapi serve --feature-cache-bytes 0`, without --feature-disk-bytes, to measure it."
            )
        return None if found.is_bound else found.seconds_per_sample

    def watch(self, plan: Plan, seconds: float, most_seconds: float, give_up: float | None = None) -> Pace:
        """The pace of a stream that is watched for `seconds` once it flows.

        It is given up after `most_seconds`, or when it is clear that its pace is no better than `give_up`.
        """
        loader, fill = self.loader(plan), self.fill_samples(plan)
        # a batch that does not come at all ends the stream as well, when it is slower for certain
        loader.timeout = most_seconds if give_up is None else min(most_seconds, max(seconds, 2 * fill * give_up))
        rule = Rule(self._together(plan), fill, seconds, most_seconds, give_up)
        with closing(iter(loader)) as batches:
            return watch(self._trained(batches), rule, time.perf_counter)

    def loader(self, plan: Plan) -> DataLoader:
        """The loader of such streams, ready."""
        if plan not in self._loaders:
            self._loaders[plan] = DataLoader(
                self._data,
                backbone=self._graph,
                transform=self._transform,
                server=self._server,
                pushdown=plan,
                batch_size=self._batch_size,
                sampler=Endless(self._dataset.samples),
                compression="none",
                device=self._device,
                engine=self._engine,
                precision=self._precision,
                requests_in_flight=IN_FLIGHT,
                buffer_bytes=self.buffer_bytes(plan),
                cache_bytes=0,
            )
            self._loaders[plan].warm_up()
        return self._loaders[plan]

    def fill_samples(self, plan: Plan) -> int:
        """Samples of the requests under way; of those that may wait too, where they are decoded or wait for others."""
        waits = len(plan.cuts) > 1 or plan.cuts[0].name == INPUT
        return self._together(plan) * (IN_FLIGHT + AHEAD * waits) // IN_FLIGHT

    def buffer_bytes(self, plan: Plan) -> int:
        """What so many requests hold, of the cut with the largest."""
        sizes = self._spans(plan)
        return (IN_FLIGHT + AHEAD) * max(math.ceil(size * self._sample_bytes(name)) for name, size in sizes.items())

    def until_idle(self) -> ServerStatus:
        """The next stream must not meet what is left of this one; InputError if the server is never idle."""
        deadline = time.monotonic() + IDLE_SECONDS
        while (status := self._server.status()).requests_active or status.requests_queued:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self._server.url} still has {status.requests_active} requests under way and "
                    f"{status.requests_queued} in line, {IDLE_SECONDS:g} s after the last stream was left. "
                    "If they are somebody else's, measure when the server has nothing else to do."
                )
            time.sleep(0.02)
        return status

    def _together(self, plan: Plan) -> int:
        """Samples of the requests under way, of the cut with the largest."""
        return IN_FLIGHT * max(self._spans(plan).values())

    def _spans(self, plan: Plan) -> dict[str, int]:
        """Samples of a request of each cut, as the loader makes them."""
        predicted = plan.predicted_seconds
        return {
            cut.name: span_size(
                self._dataset.samples,
                self._sample_bytes(cut.name),
                limit_bytes=SPAN_BYTES,
                in_flight=IN_FLIGHT,
                share=cut.share,
                per_second=self._dataset.samples / predicted if predicted else math.inf,
            )
            for cut in plan.cuts
        }

    def _sample_bytes(self, cut: str) -> float:
        """As the loader counts what is under way."""
        if cut == INPUT:
            return self._dataset.bytes / self._dataset.samples + sum(spec.bytes for spec in self._graph.inputs)
        return 2.0 * self._graph.cut(cut).bytes_per_sample

    def _trained(self, batches: Iterator[Any]) -> Iterator[int]:
        """Trains the head on each batch, and says how many samples it had."""
        for features, labels in batches:
            self._optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self._head(features.flatten(1)), labels.to(features.device))
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            loss.item()
            yield len(labels)


def _hits(status: ServerStatus) -> int:
    """Samples whose features the server found instead of computing them, so far."""
    return status.cache.hits if status.cache is not None else 0
