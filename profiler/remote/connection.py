"""HTTP with one storage server: JSON documents and streams of bytes, with typed errors and bounded waits."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from hapi.cancel import Cancel
from hapi.errors import BusyError, HapiError, InputError, ServerUnreachableError, TruncatedStreamError, WireError
from hapi.wire.protocol import API
from profiler.remote.answers import MOST_DOCUMENT_BYTES, check_answer, read_whole
from profiler.remote.channels import Channels

TOKEN_VARIABLE = "HAPI_TOKEN"

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect; for a short answer; for an answer that takes work before it begins, in whose line a busy
    server lets a request wait its turn, and between the pieces of a stream. A host that is gone is noticed sooner."""

    connect: float = 5.0
    read: float = 120.0
    long_answer: float = 600.0
    alive: float = 10.0
    """For a server that did not begin such an answer in time, to show that it is alive."""


class Connection:
    """May be used from several threads, and after a fork (it connects anew). Nothing is tried twice.

    Every call may raise ServerUnreachableError, or the error that the server's answer stands for.
    """

    def __init__(
        self, url: str, token: str | None, timeouts: Timeouts, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`token` defaults to the environment's HAPI_TOKEN. Nothing is sent yet; InputError for an impossible URL or
        token."""
        parts = _address(url)
        self.url = url.rstrip("/")
        self._timeouts = timeouts
        token = _checked(token if token is not None else os.environ.get(TOKEN_VARIABLE))
        self.has_token = bool(token)
        make = partial(
            httpx.Client,
            base_url=self.url,
            headers={"Accept-Encoding": "identity", "User-Agent": "hapi-client"}
            | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=self._timeout(timeouts.read),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            # making a TLS context takes longer than a request: one for all channels
            verify=httpx.create_ssl_context() if parts.scheme == "https" else False,
            transport=transport,
        )
        self._channels = Channels(make)
        # connections are closed with their owner, also when nobody calls close()
        weakref.finalize(self, self._channels.close)

    def close(self) -> None:
        """Gives connections back; this object may be used again."""
        self._channels.close()

    def model(self, kind: type[Answer], method: str, path: str, *, long_answer: bool = False, **options: Any) -> Answer:
        """The JSON document of an answer as `kind`; WireError if it is something else."""
        document = self.document(method, path, long_answer=long_answer, **options)
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise WireError(
                f"{self.url}: its answer to {method} {API}{path} is not that of a HAPI storage server "
                f"({error.error_count()} fields). Is this the right address, and the same version?"
            ) from error

    def document(self, method: str, path: str, *, long_answer: bool = False, **options: Any) -> dict[str, Any]:
        """The JSON object of an answer."""
        response = self.call(method, path, long_answer=long_answer, **options)
        try:
            document = response.json()
        except ValueError as error:
            raise WireError(
                f"{self.url}: answered something that is not JSON. Is a HAPI storage server there?"
            ) from error
        if not isinstance(document, dict):
            raise WireError(f"{self.url}: answered JSON that is not an object. Is a HAPI storage server there?")
        return document

    def call(
        self,
        method: str,
        path: str,
        *,
        long_answer: bool = False,
        expects: str | None = None,
        most_bytes: int | None = MOST_DOCUMENT_BYTES,
        **options: Any,
    ) -> httpx.Response:
        """A whole answer that is no error; WireError for another content type than `expects`, and one that is larger
        than `most_bytes`."""
        if long_answer:
            options["timeout"] = self._timeout(self._timeouts.long_answer)
        with self._channels.lend() as channel, self._reaching():
            arriving = channel.send(channel.client.build_request(method, API + path, **options))
            try:
                response = read_whole(arriving, self.url, most_bytes)
            finally:
                arriving.close()
        check_answer(response, self.url, expects)
        return response

    @contextmanager
    def stream(
        self, method: str, path: str, cancel: Cancel | None = None, *, expects: str | None = None, **options: Any
    ) -> Iterator[Iterator[bytes]]:
        """The pieces of an answer as they arrive; TruncatedStreamError if the connection breaks.

        `cancel` breaks it off, also while it waits for bytes. WireError for another content type than `expects`.
        BusyError if nothing came in time, but the server answers others.
        """
        options["timeout"] = self._timeout(self._timeouts.long_answer)
        with self._channels.lend() as channel, (cancel or Cancel()).calling(channel.break_off):
            with self._reaching(), self._waiting_in_line():
                response = channel.send(channel.client.build_request(method, API + path, **options))
            try:
                if response.is_error or response.is_redirect:
                    with self._reaching():
                        check_answer(read_whole(response, self.url), self.url)
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

    @contextmanager
    def _waiting_in_line(self) -> Iterator[None]:
        """For an answer that does not begin in time: is the server full, or gone?"""
        try:
            yield
        except httpx.ReadTimeout:
            try:
                self.call("GET", "/status", timeout=self._timeouts.alive)
            except ServerUnreachableError:
                raise
            except HapiError:
                pass  # an answer all the same
            seconds = self._timeouts.long_answer
            raise BusyError(f"{self.url}: is alive, but did not begin its answer within {seconds:g} s.") from None

    def _timeout(self, read: float) -> httpx.Timeout:
        return httpx.Timeout(self._timeouts.read, connect=self._timeouts.connect, read=read)


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0  # may raise as well
    except ValueError:
        is_one = False
    if not is_one:
        raise InputError(f"server {url!r}: not an address. Give it like http://storage:8470.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("server: the address must not hold credentials or a query. Pass token=... instead.")
    return parts


def _checked(token: str | None) -> str | None:
    """The token without space around it, as the end of a file's line; it is a secret, so that no error shows it."""
    token = token.strip() if token is not None else None
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError(
            f"the token of {len(token)} characters has other than printable ASCII characters, or spaces: no server "
            f"knows such a one. Correct token=... or {TOKEN_VARIABLE}."
        )
    return token


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
