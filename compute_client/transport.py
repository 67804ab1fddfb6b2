"""Talking to one storage server: REST API v1 over HTTP, with typed errors and bounded waits."""

from __future__ import annotations

import os
import ssl
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from compute_client.answers import check_answer
from compute_client.channels import Channels
from hapi.backoff import QUICK, RetryPolicy, again
from hapi.cancel import Cancel
from hapi.errors import InputError, ServerUnreachableError, TruncatedStreamError, UnknownModelError, WireError
from hapi.wire import FeatureBatch, read_stream
from hapi.wire.protocol import (
    API,
    ARCHIVE_TYPE,
    ARROW_STREAM,
    DatasetRequest,
    DatasetSummary,
    ExtractRequest,
    ModelInfo,
    ModelList,
    ServerStatus,
)
from profiler.remote import TOKEN_VARIABLE, RemoteTier

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect; between two pieces of an answer, and before its first one, for which a busy server lets a
    request wait its turn; for an answer that is computed as a whole before it is sent."""

    connect: float = 5.0
    read: float = 120.0
    long_answer: float = 600.0


class ServerClient:
    """A storage server as Python calls. May be used from several threads, and after a fork (it connects anew).

    Every call may raise ServerUnreachableError, UnauthorizedError, ForbiddenError, BusyError, or what the server's
    problem document names. Short calls are tried again within `retry`; a stream is not: its reader knows what is
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
        parts = urlsplit(url if isinstance(url, str) else "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"server {url!r}: not an address. Give it like http://storage:8470.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("server: the address must not hold credentials or a query. Pass token=... instead.")
        self.url = url.rstrip("/")
        self.timeouts, self.retry = timeouts, retry
        self._token = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        self._transport = transport
        # making a TLS context takes longer than a request: one for all connections
        verify = httpx.create_ssl_context() if parts.scheme == "https" else False
        self._channels = Channels(
            partial(_connect, self.url, self._token, self._timeout(timeouts.read), verify, transport)
        )
        # connections are closed with their client, also when nobody calls close()
        weakref.finalize(self, self._channels.close)

    def __repr__(self) -> str:
        return f"ServerClient({self.url!r}, token={'set' if self._token else None})"

    def status(self) -> ServerStatus:
        return self._again(lambda: self._json("GET", "/status", ServerStatus))

    def register(self, uri: str, *, refresh: bool = False) -> DatasetSummary:
        """Lets the server list what lies at `uri` (it may take as long as a long listing does)."""
        request = DatasetRequest(uri=uri, refresh=refresh).model_dump()
        return self._again(lambda: self._json("POST", "/datasets", DatasetSummary, json=request, long_answer=True))

    def models(self) -> list[ModelInfo]:
        return self._again(lambda: self._json("GET", "/models", ModelList)).models

    def has_model(self, digest: str) -> bool:
        try:
            self._again(lambda: self._call("HEAD", f"/models/{digest}").close())
        except UnknownModelError:
            return False
        return True

    def upload_model(self, digest: str, archive: Callable[[], Iterable[bytes]], size: int) -> ModelInfo:
        """Sends an archive of `size` bytes; `archive` gives them in pieces, anew for each try."""

        def send() -> ModelInfo:
            headers = {"Content-Type": ARCHIVE_TYPE, "Content-Length": str(size)}
            path = f"/models/{digest}"
            return self._json("PUT", path, ModelInfo, content=archive(), headers=headers, long_answer=True)

        return self._again(send)

    def delete_model(self, digest: str) -> None:
        self._again(lambda: self._call("DELETE", f"/models/{digest}").close())

    def tier(self) -> RemoteTier:
        """The same server as the profiler sees it: to measure it and the link. To be used as a context manager."""
        return RemoteTier(self.url, self._token, transport=self._transport)

    def extract(
        self, request: ExtractRequest, *, cancel: Cancel | None = None, received: Callable[[int], None] | None = None
    ) -> Iterator[FeatureBatch]:
        """The answer's batches as they arrive; `received` is told the size of each piece.

        TruncatedStreamError when the answer ends too early: the batches before it are good. Cancelling breaks the
        connection, also while it waits for bytes.
        """
        body = request.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        with self._stream(
            "POST", "/extract", cancel or Cancel(), content=body, headers=headers, expects=ARROW_STREAM
        ) as chunks:
            yield from read_stream(_counted(chunks, received))

    def close(self) -> None:
        """Gives connections back; the client may be used again."""
        self._channels.close()

    def _again(self, call: Callable[[], Result]) -> Result:
        return again(call, self.retry)

    def _json(self, method: str, path: str, kind: type[Answer], **options: Any) -> Answer:
        document = _document(self._call(method, path, **options), self.url)
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise WireError(
                f"{self.url}: its answer to {method} {API}{path} is not that of a HAPI storage server "
                f"({error.error_count()} fields). Is this the right address, and the same version?"
            ) from error

    def _call(self, method: str, path: str, *, long_answer: bool = False, **options: Any) -> httpx.Response:
        if long_answer:
            options["timeout"] = self._timeout(self.timeouts.long_answer)
        with self._channels.lend() as channel, self._reaching():
            response = channel.send(channel.client.build_request(method, API + path, **options))
        check_answer(response, self.url)
        return response

    @contextmanager
    def _stream(
        self, method: str, path: str, cancel: Cancel, *, expects: str | None = None, **options: Any
    ) -> Iterator[Iterator[bytes]]:
        with self._channels.lend() as channel, cancel.calling(channel.break_off):
            with self._reaching():
                response = channel.send(channel.client.build_request(method, API + path, **options), stream=True)
            try:
                if response.is_error:
                    with self._reaching():
                        response.read()
                check_answer(response, self.url, expects)
                yield self._chunks(response)
            finally:
                response.close()

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw()
        except (httpx.TransportError, httpx.StreamError, OSError) as error:
            raise TruncatedStreamError(
                f"{self.url}: its answer broke off ({_reason(error)}). The server or the network went away."
            ) from error

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL, OSError) as error:
            raise ServerUnreachableError(
                f"no storage server answers at {self.url} ({_reason(error)}). "
                "Check the address, and that `hapi serve` runs there."
            ) from error

    def _timeout(self, read: float) -> httpx.Timeout:
        return httpx.Timeout(self.timeouts.read, connect=self.timeouts.connect, read=read)


def _connect(
    url: str,
    token: str | None,
    timeout: httpx.Timeout,
    verify: ssl.SSLContext | bool,
    transport: httpx.BaseTransport | None,
) -> httpx.Client:
    headers = {"Accept-Encoding": "identity", "User-Agent": "hapi-client"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    return httpx.Client(
        base_url=url, headers=headers, timeout=timeout, limits=limits, verify=verify, transport=transport
    )


def _document(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError as error:
        raise WireError(f"{url}: answered something that is not JSON. Is a HAPI storage server there?") from error
    if not isinstance(document, dict):
        raise WireError(f"{url}: answered JSON that is not an object. Is a HAPI storage server there?")
    return document


def _counted(chunks: Iterable[bytes], received: Callable[[int], None] | None) -> Iterator[bytes]:
    for chunk in chunks:
        if received is not None:
            received(len(chunk))
        yield chunk


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
