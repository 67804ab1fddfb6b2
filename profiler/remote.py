"""The little that profiling asks of a storage server: its status, a dataset, a model, its measurements, its link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from hapi.data import TransformSpec
from hapi.errors import HapiError, ServerUnreachableError, ServiceError, TruncatedStreamError, WireError, from_kind
from hapi.model import Graph
from hapi.model.archive import archive_chunks
from hapi.plan import INPUT
from hapi.wire import read_stream
from hapi.wire.protocol import (
    API,
    ARCHIVE_TYPE,
    DatasetRequest,
    DatasetSummary,
    ExtractRequest,
    ProfileRequest,
    ServerStatus,
)
from profiler.tier import TierProfile

TOKEN_VARIABLE = "HAPI_TOKEN"
TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=600.0)
"""Seconds; the long one is for answers that are computed before they are sent: a listing, a measurement."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class RemoteTier:
    """A storage server, seen by the profiler. A context manager; errors are those of hapi.errors.

    `token` defaults to the environment's HAPI_TOKEN. Nothing is tried twice: a measurement can be asked for again.
    """

    def __init__(self, url: str, token: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        token = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport)
        except httpx.InvalidURL as error:
            raise ServerUnreachableError(f"server {url!r}: not an address ({error}). Say http://host:port.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def status(self) -> ServerStatus:
        return self._json("GET", "/status", ServerStatus)

    def register(self, uri: str) -> DatasetSummary:
        """Lets the server list the dataset at `uri`, which is an address on its side."""
        return self._json("POST", "/datasets", DatasetSummary, json=DatasetRequest(uri=uri).model_dump())

    def ensure_model(self, graph: Graph) -> str:
        """Uploads the graph's archive unless the server has it; its digest."""
        path = f"/models/{graph.digest}"
        if self._send("HEAD", path, allow=(404,)).status_code == 404:
            self._send("PUT", path, content=archive_chunks(graph), headers={"Content-Type": ARCHIVE_TYPE})
        return graph.digest

    def measure(self, model: str, dataset: str, transform: TransformSpec, samples: int) -> TierProfile:
        """What the server's own device needs for every cut of a model that it holds."""
        request = ProfileRequest(model=model, dataset=dataset, transform=transform.to_json(), samples=samples)
        response = self._send("POST", "/profile", json=request.model_dump())
        return TierProfile.from_json(_document(response, self.url))

    def objects(self, dataset: str, indices: list[int]) -> list[bytes]:
        """Stored objects as they are: what a client must decode that gets nothing else."""
        request = ExtractRequest(dataset=dataset, indices=indices, cut=INPUT)
        found: list[bytes] = []
        for batch in read_stream(self._stream("POST", "/extract", json=request.model_dump())):
            found += [data for row, data in enumerate(batch.objects or ()) if row not in batch.errors]
        return found

    def fetch(self, count: int) -> Iterator[bytes]:
        """`count` bytes, as they arrive; for `probe_link`."""
        return self._stream("GET", "/link", params={"bytes": count})

    def _stream(self, method: str, path: str, **options: Any) -> Iterator[bytes]:
        try:
            with self._client.stream(method, API + path, **options) as response:
                if response.is_error:
                    response.read()
                _check(response, self.url)
                yield from response.iter_bytes()
        except httpx.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx.TransportError as error:
            raise TruncatedStreamError(f"{self.url}: its answer broke off ({error}). Try again.") from error

    def _send(self, method: str, path: str, *, allow: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, API + path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code not in allow:
            _check(response, self.url)
        return response

    def _json(self, method: str, path: str, kind: type[_Answer], **options: Any) -> _Answer:
        document = _document(self._send(method, path, **options), self.url)
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise WireError(
                f"{self.url}: answered {path} unlike a HAPI storage server. Is the address right?"
            ) from error

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"no storage server answers at {self.url} ({error or type(error).__name__}). "
            "Check the address, and that `hapi serve` runs there."
        )


def _check(response: httpx.Response, url: str) -> None:
    """Raises the error that a failed answer stands for."""
    if not response.is_error and not response.is_redirect:
        return
    problem: Any = None
    if "json" in response.headers.get("content-type", ""):
        try:
            problem = response.json()
        except ValueError:
            problem = None
    raise _problem(problem, response, url)


def _problem(problem: Any, response: httpx.Response, url: str) -> HapiError:
    if isinstance(problem, dict) and isinstance(problem.get("type"), str):
        return from_kind(problem["type"], f"{url}: {problem.get('detail') or problem.get('title')}")
    if response.status_code in (401, 403):
        kind = "unauthorized" if response.status_code == 401 else "forbidden"
        return from_kind(
            kind, f"{url}: answered {response.status_code}. Give the right --token, or set {TOKEN_VARIABLE}."
        )
    return ServiceError(f"{url}: answered {response.status_code} {response.reason_phrase}. Is a HAPI server there?")


def _document(response: httpx.Response, url: str) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise WireError(f"{url}: answered something that is not JSON. Is a HAPI storage server there?") from error
