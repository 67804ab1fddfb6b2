"""Answers of servers and of proxies before them stand for typed errors."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from hapi.errors import (
    BusyError,
    ForbiddenError,
    ServerUnreachableError,
    ServiceError,
    StoreUnavailableError,
    UnauthorizedError,
    UnknownModelError,
    WireError,
)
from hapi.wire import FeatureBatch, StreamEncoder
from hapi.wire.protocol import ARROW_STREAM, ExtractRequest
from profiler.remote import ServerClient
from profiler.remote.answers import MOST_DOCUMENT_BYTES, error_of


@pytest.mark.parametrize(
    ("status", "method", "error"),
    [
        (401, "GET", UnauthorizedError),
        (403, "POST", ForbiddenError),
        (404, "HEAD", UnknownModelError),
        (404, "GET", ServiceError),
        (429, "POST", BusyError),
        (502, "POST", ServerUnreachableError),
        (503, "POST", BusyError),
        (500, "POST", ServiceError),
    ],
)
def test_answers_without_a_problem_document_have_a_meaning(status: int, method: str, error: type[Exception]) -> None:
    response = httpx.Response(status, request=httpx.Request(method, "http://s/v1/x"), text="<html>")
    assert type(error_of(response, "http://s")) is error


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("99999", 60.0), ("-4", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), ("nan", 1.0)],
)
def test_retry_after_is_read_within_bounds(header: str, seconds: float) -> None:
    response = httpx.Response(429, request=httpx.Request("GET", "http://s"), headers={"retry-after": header})
    error = error_of(response, "http://s")
    assert isinstance(error, BusyError)
    assert error.retry_after_seconds == seconds


def test_retry_after_may_be_a_date() -> None:
    headers = {"date": "Wed, 21 Oct 2026 07:27:40 GMT", "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
    response = httpx.Response(503, request=httpx.Request("GET", "http://s"), headers=headers)
    assert error_of(response, "http://s").retry_after_seconds == 20.0


def test_a_store_that_rests_may_say_for_how_long() -> None:
    body = {"type": "store-unavailable", "detail": "the store rests."}
    request = httpx.Request("POST", "http://s")
    said = error_of(httpx.Response(503, request=request, json=body, headers={"retry-after": "5"}), "http://s")
    assert isinstance(said, StoreUnavailableError)
    assert said.retry_after_seconds == 5.0
    assert error_of(httpx.Response(503, request=request, json=body), "http://s").retry_after_seconds == 0.0


def test_an_answer_that_does_not_begin_is_a_full_server_if_it_answers_others() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/status":
            if is_gone:
                raise httpx.ConnectTimeout("no route")
            return httpx.Response(401, json={"type": "unauthorized", "detail": "no."})
        raise httpx.ReadTimeout("nothing came")

    is_gone = False
    request = ExtractRequest(dataset="0" * 64, indices=[0], cut="input")
    client = ServerClient("http://s", transport=httpx.MockTransport(handle))
    with pytest.raises(BusyError, match="is alive"):
        list(client.extract(request))
    is_gone = True
    with pytest.raises(ServerUnreachableError):
        list(client.extract(request))


@pytest.mark.parametrize("indices", [[3], [0, 0]])
def test_objects_that_were_not_asked_for_are_not_kept(indices: list[int]) -> None:
    """Such an answer need have no end, and all of it was kept."""
    encoder = StreamEncoder(cut="input")
    batch = FeatureBatch(np.array(indices), np.zeros(len(indices), np.int64), objects=[b"x"] * len(indices))

    def endless() -> Iterator[bytes]:
        yield encoder.header()
        for _ in range(1000):
            yield encoder.encode(batch)
        raise AssertionError("it was read to its end")

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": ARROW_STREAM}, content=endless())

    client = ServerClient("http://s", transport=httpx.MockTransport(handle))
    with pytest.raises(WireError, match=f"sample {indices[-1]}, which was not asked for, or twice"):
        client.objects("0" * 64, [0, 1])


@pytest.mark.parametrize("status", [200, 500])
def test_documents_are_read_within_bounds(status: int) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MOST_DOCUMENT_BYTES // 2**20 + 2):
            yield bytes(2**20)
        raise AssertionError("it was read to its end")

    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=endless()))
    client = ServerClient("http://s", transport=transport)
    with pytest.raises(WireError, match="larger than"):
        client.status()
    if status != 200:
        with pytest.raises(WireError, match="larger than"):
            list(client.extract(ExtractRequest(dataset="0" * 64, indices=[0], cut="input")))


def test_documents_that_are_not_encoded_as_they_say_are_one_error() -> None:
    headers = {"content-encoding": "gzip"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=iter([b"no gzip"])))
    with pytest.raises(WireError, match="cannot be read"):
        ServerClient("http://s", transport=transport).status()


def test_an_answer_that_sends_elsewhere_is_one_error() -> None:
    def moved(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "http://other/"}, content=iter([b""]))

    client = ServerClient("http://s", transport=httpx.MockTransport(moved))
    with pytest.raises(ServiceError, match="302 Found"):
        client.status()
    with pytest.raises(ServiceError, match="302 Found"):
        list(client.extract(ExtractRequest(dataset="0" * 64, indices=[0], cut="input")))
