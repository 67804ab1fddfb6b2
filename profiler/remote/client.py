"""A storage server as Python calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self, TypeVar

import httpx

from hapi.backoff import QUICK, RetryPolicy, again
from hapi.cancel import Cancel
from hapi.data import Manifest, TransformSpec
from hapi.engine import Precision
from hapi.errors import UnknownModelError, WireError
from hapi.model import Graph, archive_bytes, archive_chunks
from hapi.plan import INPUT
from hapi.wire import FeatureBatch, read_stream
from hapi.wire.protocol import (
    ARCHIVE_TYPE,
    ARROW_STREAM,
    DatasetRequest,
    DatasetSummary,
    ExtractRequest,
    ModelInfo,
    ModelList,
    ProfileRequest,
    ServerStatus,
)
from profiler.remote.connection import Connection, Timeouts
from profiler.tier import TierProfile

Result = TypeVar("Result")


class ServerClient:
    """May be used from several threads, and after a fork (it connects anew). A context manager, but needs no closing.

    Every call may raise ServerUnreachableError, UnauthorizedError, ForbiddenError, BusyError, or what the server's
    problem document names. Whole answers are asked for again within `retry`; a stream is not: its reader knows what is
    missing.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeouts: Timeouts = Timeouts(),
        retry: RetryPolicy = QUICK,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`token` defaults to the environment's HAPI_TOKEN. Nothing is sent yet; InputError for an impossible URL."""
        self._connection = Connection(url, token, timeouts, transport)
        self._retry = retry

    @property
    def url(self) -> str:
        return self._connection.url

    def __repr__(self) -> str:
        return f"ServerClient({self.url!r}, token={'set' if self._connection.has_token else None})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> ServerStatus:
        return self._again(lambda: self._connection.model(ServerStatus, "GET", "/status"))

    def register(self, uri: str, *, refresh: bool = True) -> DatasetSummary:
        """Lets the server list what lies at `uri` now, an address on its side; takes as long as a long listing does.

        Without `refresh`, a listing that the server made at any time before will do.
        """
        body = DatasetRequest(uri=uri, refresh=refresh).model_dump()
        return self._again(
            lambda: self._connection.model(DatasetSummary, "POST", "/datasets", json=body, long_answer=True)
        )

    def manifest(self, digest: str) -> Manifest:
        """Every sample of a registered dataset, with its key; some 100 bytes each."""
        path = f"/datasets/{digest}"
        manifest = Manifest.from_bytes(
            self._again(
                lambda: self._connection.call("GET", path, long_answer=True, expects=ARROW_STREAM, most_bytes=None)
            ).content
        )
        if manifest.digest != digest:
            raise WireError(f"{self.url}: sent the manifest {manifest.digest}, not {digest}. Is it the right address?")
        return manifest

    def models(self) -> list[ModelInfo]:
        return self._again(lambda: self._connection.model(ModelList, "GET", "/models")).models

    def has_model(self, digest: str) -> bool:
        try:
            self._again(lambda: self._connection.call("HEAD", f"/models/{digest}"))
        except UnknownModelError:
            return False
        return True

    def ensure_model(self, graph: Graph) -> bool:
        """Sends the graph's archive unless the server holds it; whether it was sent."""
        if self.has_model(graph.digest):
            return False
        self.upload_model(graph.digest, lambda: archive_chunks(graph), archive_bytes(graph))
        return True

    def upload_model(self, digest: str, archive: Callable[[], Iterable[bytes]], size: int) -> ModelInfo:
        """Sends an archive of `size` bytes; `archive` gives them in pieces, anew for each try."""
        headers = {"Content-Type": ARCHIVE_TYPE, "Content-Length": str(size)}
        return self._again(
            lambda: self._connection.model(
                ModelInfo, "PUT", f"/models/{digest}", content=archive(), headers=headers, long_answer=True
            )
        )

    def delete_model(self, digest: str) -> None:
        self._again(lambda: self._connection.call("DELETE", f"/models/{digest}"))

    def measure(
        self,
        model: str,
        dataset: str,
        transform: TransformSpec,
        samples: int,
        *,
        refresh: bool = False,
        precision: Precision | None = None,
    ) -> TierProfile:
        """What the server's own device needs for every cut of a model that it holds, in its own precision or another.

        The server remembers it; `refresh` has it measure again.
        """
        steps = transform.to_json()
        request = ProfileRequest(
            model=model, dataset=dataset, transform=steps, samples=samples, refresh=refresh, precision=precision
        )
        body = request.model_dump(exclude_none=True)
        document = self._again(lambda: self._connection.document("POST", "/profile", json=body, long_answer=True))
        return TierProfile.from_json(document)

    def objects(self, dataset: str, indices: Sequence[int]) -> list[bytes]:
        """Stored objects as they are, without those that cannot be read."""
        request = ExtractRequest(dataset=dataset, indices=list(indices), cut=INPUT)

        def fetched() -> list[bytes]:
            missing = set(indices)
            found: list[bytes] = []
            for batch in self.extract(request):
                for row, index in enumerate(batch.indices.tolist()):
                    if index not in missing:  # or there would be no end to what is kept
                        raise WireError(f"{self.url}: sent sample {index}, which was not asked for, or twice.")
                    missing.remove(index)
                    if row not in batch.errors:
                        found += (batch.objects or ())[row : row + 1]
            return found

        return self._again(fetched)

    def link(self, count: int, *, cancel: Cancel | None = None) -> Iterator[bytes]:
        """`count` bytes that say nothing, as they arrive; for `probe_link`. Cancelling breaks the connection."""
        with self._connection.stream("GET", "/link", cancel, params={"bytes": count}) as chunks:
            yield from chunks

    def extract(
        self, request: ExtractRequest, *, cancel: Cancel | None = None, received: Callable[[int], None] | None = None
    ) -> Iterator[FeatureBatch]:
        """The answer's batches as they arrive; `received` is told the size of each piece.

        TruncatedStreamError when the answer ends too early: the batches before it are good. Cancelling breaks the
        connection, also while it waits for bytes.
        """
        body = request.model_dump_json(exclude_none=True).encode()
        headers = {"Content-Type": "application/json"}
        with self._connection.stream(
            "POST", "/extract", cancel, content=body, headers=headers, expects=ARROW_STREAM
        ) as chunks:
            yield from read_stream(_counted(chunks, received))

    def close(self) -> None:
        """Gives connections back; the client may be used again."""
        self._connection.close()

    def _again(self, call: Callable[[], Result]) -> Result:
        return again(call, self._retry)


def _counted(chunks: Iterable[bytes], received: Callable[[int], None] | None) -> Iterator[bytes]:
    for chunk in chunks:
        if received is not None:
            received(len(chunk))
        yield chunk
