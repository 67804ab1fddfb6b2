"""A storage server in a few lines, as far as the profiler asks one: for tests, in process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import numpy as np

from hapi.data import TransformSpec, build_manifest, open_store, read_sample
from hapi.model import load_archive
from hapi.wire import FeatureBatch, StreamEncoder
from hapi.wire.protocol import ARROW_STREAM, ExtractRequest, ProfileRequest
from profiler import measure, measure_loading

TOKEN = "secret"


class FakeStorage:
    """Serves one folder under the API's routes; notes what it is asked, and which datasets were named."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.manifest = build_manifest(folder)
        self.store = open_store(str(folder))
        self.scratch = scratch
        self.asked: list[str] = []
        self.named: list[str] = []
        self.models: dict[str, bytes] = {}
        self.machine = ""

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        _, _, route, *rest = request.url.path.split("/")
        self.asked.append(f"{request.method} {route}")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            problem = {"type": "unauthorized", "title": "Unauthorized", "status": 401, "detail": "no such token"}
            return httpx.Response(401, json=problem, headers={"content-type": "application/problem+json"})
        handler = getattr(self, f"{request.method.lower()}_{route}")
        return handler(request, *rest)

    def get_status(self, request: httpx.Request) -> httpx.Response:
        numbers = dict.fromkeys(("used_bytes", "requests_active", "requests_queued", "samples_done"), 0)
        said = {"version": "1", "device": "cpu", "budget_bytes": 10**9, "models": [], "roots": []}
        return httpx.Response(200, json={**numbers, **said, "machine": self.machine})

    def post_datasets(self, request: httpx.Request) -> httpx.Response:
        manifest = self.manifest
        self.named.append(json.loads(request.content)["uri"])
        summary = {
            "digest": manifest.digest,
            "uri": manifest.uri,
            "samples": len(manifest),
            "bytes": manifest.total_bytes,
            "classes": list(manifest.classes),
            "labelled": True,
            "order_digest": manifest.order_digest,
        }
        return httpx.Response(200, json=summary)

    def head_models(self, request: httpx.Request, digest: str) -> httpx.Response:
        return httpx.Response(200 if digest in self.models else 404)

    def put_models(self, request: httpx.Request, digest: str) -> httpx.Response:
        self.models[digest] = request.read()
        assert hashlib.sha256(self.models[digest]).hexdigest() == digest
        info = {"digest": digest, "name": "toy", "bytes": len(self.models[digest]), "cuts": []}
        return httpx.Response(201, json=info)

    def post_profile(self, request: httpx.Request) -> httpx.Response:
        asked = ProfileRequest.model_validate_json(request.read())
        path = self.scratch / "model.hapi"
        path.write_bytes(self.models[asked.model])
        transform = TransformSpec.from_json(asked.transform)
        load = measure_loading(self.store, self.manifest, transform, samples=asked.samples)
        tier = measure(
            load_archive(path), repeats=1, batch_size=1, load_seconds=load.load_seconds, input_bytes=load.input_bytes
        )
        return httpx.Response(200, json=tier.to_json())

    def post_extract(self, request: httpx.Request) -> httpx.Response:
        asked = ExtractRequest.model_validate_json(request.read())
        objects = [read_sample(self.store, self.manifest.sample(index)) for index in asked.indices]
        encoder = StreamEncoder(cut=asked.cut)
        batch = FeatureBatch(np.array(asked.indices), np.zeros(len(objects), np.int64), objects=objects)
        content = encoder.header() + encoder.encode(batch) + encoder.end()
        return httpx.Response(200, content=iter([content]), headers={"content-type": ARROW_STREAM})

    def get_link(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=iter([bytes(int(request.url.params["bytes"]))]))


def broken(status: int, content: bytes = b"<html>", kind: str = "text/html") -> httpx.MockTransport:
    """Something at the address that is no storage server."""
    return httpx.MockTransport(lambda _: httpx.Response(status, content=content, headers={"content-type": kind}))


def problem(kind: str, detail: str, status: int) -> httpx.MockTransport:
    return broken(status, json.dumps({"type": kind, "detail": detail}).encode(), "application/problem+json")
