"""Addresses and tokens of servers: what cannot be one is said before anything is sent."""

from __future__ import annotations

import httpx
import pytest

from hapi.backoff import RetryPolicy
from hapi.errors import HapiError, InputError
from profiler.remote import ServerClient

TOKEN = "secret-0123456789"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "storage:8470",
        "ftp://storage",
        "http://",
        "http://storage:x",
        "http://storage:99999",
        "http://[::1",
        "http://:1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"not an address. Give it like http://storage:8470"):
        ServerClient(url)


@pytest.mark.parametrize("url", ["http://me:secret@storage:1", "http://storage:1?token=secret"])
def test_secrets_in_an_address_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="Pass token=") as caught:
        ServerClient(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\n", f" {TOKEN}\r\n"])
def test_a_token_may_come_from_a_file_with_the_end_of_its_line(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return httpx.Response(500)

    patience = RetryPolicy(patience_seconds=0)
    monkeypatch.setenv("HAPI_TOKEN", token)
    for given in (token, None):
        with ServerClient("http://s", given, retry=patience, transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(HapiError):
                client.status()
            assert repr(client) == "ServerClient('http://s', token=set)"
    assert sent == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("token", ["two secrets", "secret\nsecret", "sécret", "secret\x00", "secret\u200b"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InputError, match="printable ASCII") as caught:
        ServerClient("http://storage:8470", token)
    assert "secret" not in str(caught.value)
    assert "cret" not in str(caught.value)
