"""A storage server in memory that speaks the real protocol, and can be told to fail in the ways real ones do."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import torch

from hapi.backoff import RetryPolicy
from hapi.data import TransformSpec, build_manifest, load_sample, open_store, read_sample
from hapi.errors import ImageError
from hapi.model import Graph
from hapi.plan import INPUT, CutCost, Link, Profile
from hapi.wire import FeatureBatch, StreamEncoder
from hapi.wire.protocol import ARROW_STREAM, PROBLEM_JSON, DatasetSummary, ExtractRequest, ModelInfo
from hapi.wire.work import Work
from profiler.remote import ServerClient

URL = "http://fake-storage:8470"
MESSAGE_SAMPLES = 3
FAST = RetryPolicy(patience_seconds=20.0, attempts=50, first_seconds=0.001, longest_seconds=0.01)

Trouble = Callable[[int], httpx.Response | None]
"""Given the number of an extract request (from 0), an answer instead of the right one, or None."""


class FakeServer:
    """`trouble(number)` may answer extract requests itself; `cut_off(number)` says after how many messages the stream
    of a request breaks (None: never); `work(samples)` is what it says of a message. Counts what it was asked."""

    def __init__(self, root: Path, graph: Graph | None = None, token: str | None = None) -> None:
        self.manifest = build_manifest(str(root))
        self.store = open_store(str(root))
        self.graph, self.token = graph, token
        self.models: set[str] = set()
        self.datasets: set[str] = set()
        self.trouble: Trouble = lambda number: None
        self.cut_off: Callable[[int], int | None] = lambda number: None
        self.work: Callable[[int], Work | None] = lambda samples: None
        self.sent: Counter[int] = Counter()
        self.requests: list[ExtractRequest] = []
        self.calls: Counter[str] = Counter()
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def client(self, token: str | None = None) -> ServerClient:
        return ServerClient(
            URL, token or self.token, retry=FAST, transport=httpx.MockTransport(lambda request: self.handle(request))
        )

    def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        with self._lock:
            self.calls[f"{request.method} {path.split('/')[2]}"] += 1
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return problem(401, "unauthorized", "this server does not know that token.")
        if path == "/v1/datasets":
            return self._register(json.loads(request.content))
        if path == f"/v1/datasets/{self.manifest.digest}":
            return httpx.Response(200, content=self.manifest.to_bytes(), headers={"Content-Type": ARROW_STREAM})
        if path.startswith("/v1/models/"):
            return self._model(request, path.rpartition("/")[2])
        if path == "/v1/extract":
            return self._extract(ExtractRequest.model_validate_json(request.content))
        return problem(404, "not-found", f"no {path}")

    def _register(self, body: dict) -> httpx.Response:
        self.datasets.add(self.manifest.digest)
        summary = DatasetSummary(
            digest=self.manifest.digest,
            uri=body["uri"],
            samples=len(self.manifest),
            bytes=self.manifest.total_bytes,
            classes=list(self.manifest.classes),
            labelled=True,
            order_digest=self.manifest.order_digest,
        )
        return httpx.Response(200, json=summary.model_dump())

    def _model(self, request: httpx.Request, digest: str) -> httpx.Response:
        if request.method == "PUT":
            assert int(request.headers["content-length"]) == len(request.read())
            self.models.add(digest)
            return httpx.Response(201, json=ModelInfo(digest=digest, name="m", bytes=1, cuts=[]).model_dump())
        return httpx.Response(200 if digest in self.models else 404)

    def _extract(self, request: ExtractRequest) -> httpx.Response:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
        if (answer := self.trouble(number)) is not None:
            return answer
        if request.dataset not in self.datasets:
            return problem(404, "unknown-dataset", "register it first.")
        if request.cut != INPUT and request.model not in self.models:
            return problem(404, "unknown-model", "upload it first.")
        return httpx.Response(
            200, headers={"content-type": ARROW_STREAM}, content=self._stream(request, self.cut_off(number))
        )

    def _stream(self, request: ExtractRequest, messages: int | None) -> Iterator[bytes]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            cut = None if request.cut == INPUT else self.graph.cut(request.cut)
            encoder = StreamEncoder(
                cut.shapes if cut else (),
                cut.dtypes if cut else (),
                request.codec,
                request.compression,
                cut=request.cut,
            )
            yield encoder.header()
            for count, start in enumerate(range(0, len(request.indices), MESSAGE_SAMPLES)):
                if count == messages:
                    raise httpx.ReadError("connection reset by peer")
                batch = self._answer(request, request.indices[start : start + MESSAGE_SAMPLES])
                batch.work = self.work(len(batch))
                yield encoder.encode(batch)
            if messages is not None and messages >= 100:
                return  # a stream that ends without its end marker
            yield encoder.end()
        finally:
            with self._lock:
                self._at_once -= 1

    def _answer(self, request: ExtractRequest, indices: list[int]) -> FeatureBatch:
        samples = [self.manifest.sample(index) for index in indices]
        labels = np.array([sample.label for sample in samples])
        data = [read_sample(self.store, sample) for sample in samples]
        with self._lock:
            self.sent.update(indices)
        if request.cut == INPUT:
            return FeatureBatch(np.array(indices), labels, objects=data)
        spec = TransformSpec.from_json(request.transform)
        errors: dict[int, str] = {}
        inputs = []
        for row, (index, item) in enumerate(zip(indices, data, strict=True)):
            try:
                inputs.append(load_sample(item, spec, seed=request.seed, epoch=request.epoch, index=index))
            except ImageError as error:
                errors[row] = f"{samples[row].key}: {error}"
                inputs.append(torch.zeros(self.graph.inputs[0].shape))
        prefix, _ = self.graph.split(request.cut)
        with torch.no_grad():
            tensors = prefix(torch.stack(inputs))
        for row in errors:
            for tensor in tensors:
                tensor[row] = 0
        return FeatureBatch(np.array(indices), labels, tensors, errors=errors)


def profile_of_graph(graph: Graph, bits_per_s: float = 8e6) -> Profile:
    """Costs of its cuts that make the deeper ones dearer for the server, and cheaper for link and client."""
    count = len(graph.cuts)
    cuts = tuple(
        CutCost(cut.name, 2000.0 * (count - place), 0.001 * (1 + place), 0.001 * (count - place))
        for place, cut in enumerate(graph.cuts)
    )
    return Profile(graph.name, 2000.0, cuts, Link(bits_per_s), samples=1000, batch_size=4)


def problem(status: int, kind: str, detail: str, **headers: str) -> httpx.Response:
    body = json.dumps({"type": kind, "title": kind, "status": status, "detail": detail})
    return httpx.Response(status, content=body, headers={"content-type": PROBLEM_JSON, **headers})
