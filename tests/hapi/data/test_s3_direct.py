"""Objects are read without botocore once it has shown how, and by it again wherever that is no plain success."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from botocore import UNSIGNED
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from hapi.data import StoreSettings
from hapi.data.stores import S3Store
from hapi.data.stores.s3_direct import MOST_REFUSALS, DirectReads, Place, quoted
from hapi.errors import AccessDeniedError, ObjectNotFoundError, StoreError

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

BUCKET = "direct-tests"
REGION = "us-east-1"


@pytest.fixture
def store(s3_store: Endpoint, request: pytest.FixtureRequest) -> Iterator[S3Store]:
    store = S3Store(BUCKET, f"at/{request.node.name[:40]}", s3_store.settings(attempts=2))
    store.create_bucket()
    yield store
    store.close()


def without_botocore(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of botocore from now on; it is answered as ever."""
    asked: list[dict[str, Any]] = []
    client: Any = store._client
    usual = client.get_object
    monkeypatch.setattr(client, "get_object", lambda **request: (asked.append(request), usual(**request))[1])
    return asked


@pytest.mark.s3
def test_all_but_the_first_object_are_read_directly(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"a~b/{index:02d} é+%&=?.bin": os.urandom(1000 * index) for index in range(8)}
    for key, data in contents.items():
        store.put(key, data)
    assert store.get("a~b/00 é+%&=?.bin") == b""
    asked = without_botocore(store, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(store.get, contents)) == list(contents.values())
    last, data = contents.popitem()
    assert store.get(last, 10) == data[10:]
    assert store.get(last, 10, 20) == data[10:30]
    assert store.get(last, 0, len(data)) == data
    assert not asked


@pytest.mark.s3
def test_what_fails_is_asked_of_botocore_which_says_what_is_wrong(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", b"0123456789")
    store.get("x")
    asked = without_botocore(store, monkeypatch)
    with pytest.raises(ObjectNotFoundError, match="none does not exist"):
        store.get("none")
    with pytest.raises(StoreError, match="shorter than when it was listed"):
        store.get("x", 11, 1)
    with pytest.raises(StoreError, match=r"9 bytes from 3 .* holds 7"):
        store.get("x", 3, 9)
    assert len(asked) == 2
    assert store.get("x") == b"0123456789"
    assert len(asked) == 2


@pytest.mark.s3
def test_keys_that_are_refused_stay_refused(s3_store: Endpoint, store: S3Store) -> None:
    store.put("x", b"x")
    stranger = S3Store(BUCKET, "at", s3_store.settings(secret_key="wrong"))
    for _ in range(2):
        with pytest.raises(AccessDeniedError):
            stranger.get("x")
    assert stranger._direct is not None
    assert stranger._direct._place is None
    stranger.close()


@pytest.mark.s3
def test_a_store_that_was_closed_learns_anew(store: S3Store) -> None:
    store.put("x", b"data")
    for _ in range(2):
        assert store.get("x") == store.get("x") == b"data"
        assert store._direct is not None
        assert store._direct._place is not None
        store.close()


# -- what a real server does not show on demand ---------------------------------------------------------------


class Events:
    """Of a client: what is called before a request is signed."""

    def __init__(self) -> None:
        self.seen: list[Callable[..., None]] = []

    def register(self, name: str, seen: Callable[..., None]) -> None:
        assert name == "before-sign.s3.GetObject"
        self.seen.append(seen)


class Botocore:
    """Shows to those who look on how an object is asked for."""

    def __init__(self, *, checks: str = "when_required") -> None:
        self.events = Events()
        self.client: Any = SimpleNamespace(
            meta=SimpleNamespace(config=SimpleNamespace(response_checksum_validation=checks), events=self.events)
        )

    def asks(self, url: str, version: Any = "s3v4", **context: Any) -> None:
        request = AWSRequest("GET", url)
        request.context.update(context)
        for seen in self.events.seen:
            seen(request=request, region_name=REGION, signature_version=version, signing_name="s3", request_signer=None)


def reads_of(botocore: Botocore, credentials: Credentials | None = None, **settings: Any) -> DirectReads:
    return DirectReads(botocore.client, credentials, StoreSettings.load(**settings), None)


KEYS = Credentials("key", "secret", "token")


@pytest.fixture
def answers() -> Iterator[SimpleNamespace]:
    """A server: `url`, the `requests` it had, and the (status, body, promised length) that it `gives` to all, with more
    `headers`."""
    state = SimpleNamespace(requests=[], gives=(200, b"whole", 5), headers={})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            status, body, promised = state.gives
            self.send_response(status)
            for name, value in {"Content-Length": str(promised), **state.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = promised != len(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def learned(answers: SimpleNamespace, credentials: Credentials | None = KEYS, **settings: Any) -> DirectReads:
    botocore = Botocore()
    reads = reads_of(botocore, credentials, **settings)
    assert reads.read("p/x", None) is None  # nothing is known yet
    botocore.asks(f"{answers.url}/bucket/p/x", UNSIGNED if credentials is None else "s3v4")
    reads.learn("p/x")
    return reads


def test_requests_are_signed_with_the_clients_credentials(answers: SimpleNamespace) -> None:
    reads = learned(answers, requester_pays=True)
    assert reads.read("p/a b", None) == b"whole"
    ((path, headers),) = answers.requests
    assert path == "/bucket/p/a%20b"
    assert "Credential=key/" in headers["Authorization"]
    assert f"/{REGION}/s3/aws4_request" in headers["Authorization"]
    assert "x-amz-request-payer" in headers["Authorization"].partition("SignedHeaders=")[2]
    assert headers["X-Amz-Security-Token"] == "token"
    assert headers["x-amz-request-payer"] == "requester"
    reads.close()
    assert reads.read("p/x", None) is None


def test_a_public_bucket_is_asked_without_a_signature(answers: SimpleNamespace) -> None:
    reads = learned(answers, None, unsigned=True)
    answers.gives = (206, b"who", 3)
    assert reads.read("p/x", "bytes=0-2") == b"who"
    ((_, headers),) = answers.requests
    assert headers["Range"] == "bytes=0-2"
    assert "Authorization" not in headers
    reads.close()


def test_a_part_is_told_by_its_header_too(answers: SimpleNamespace) -> None:
    reads = learned(answers)
    answers.gives, answers.headers = (200, b"who", 3), {"Content-Range": "bytes 0-2/5"}  # as rclone's server answers
    assert reads.read("p/x", "bytes=0-2") == b"who"
    assert reads.read("p/x", None) is None
    reads.close()


@pytest.mark.parametrize(
    ("gives", "span"),
    [
        ((503, b"slow", 4), None),
        ((404, b"none", 4), None),
        ((301, b"away", 4), None),
        ((200, b"half", 8), None),
        ((200, b"whole", 5), "bytes=0-2"),
        ((206, b"part", 4), None),
    ],
)
def test_what_is_no_plain_success_is_left_to_botocore(
    answers: SimpleNamespace, gives: tuple[int, bytes, int], span: str | None
) -> None:
    reads = learned(answers)
    answers.gives = gives
    assert reads.read("p/x", span) is None
    assert len(answers.requests) == 1
    answers.gives = (200, b"whole", 5)
    assert reads.read("p/x", None) == b"whole"
    reads.close()


def test_after_some_refusals_in_a_row_it_asks_no_more(answers: SimpleNamespace) -> None:
    reads = learned(answers)
    answers.gives = (403, b"", 0)
    for _ in range(2 * MOST_REFUSALS):
        assert reads.read("p/x", None) is None
    assert len(answers.requests) == MOST_REFUSALS
    reads.close()


def test_a_store_that_went_away_is_left_to_botocore() -> None:
    botocore = Botocore()
    reads = reads_of(botocore, KEYS, connect_timeout_seconds=1)
    botocore.asks("http://127.0.0.1:9/bucket/x")
    reads.learn("x")
    assert reads.read("x", None) is None
    reads.close()


@pytest.mark.parametrize(
    ("url", "version", "checks", "credentials"),
    [
        ("http://store.test/bucket/other", "s3v4", "when_required", KEYS),
        ("http://store.test/bucket/x?versionId=1", "s3v4", "when_required", KEYS),
        ("http://store.test/bucket/x", "v4-s3express", "when_required", KEYS),
        ("http://store.test/bucket/x", "s3", "when_required", KEYS),
        ("http://store.test/bucket/x", "s3v4", "when_required", None),
        ("http://store.test/bucket/x", "s3v4", "when_supported", KEYS),
    ],
)
def test_what_is_not_understood_is_not_learned(
    url: str, version: str, checks: str, credentials: Credentials | None
) -> None:
    botocore = Botocore(checks=checks)
    reads = reads_of(botocore, credentials)
    botocore.asks(url, version)
    reads.learn("x")
    assert reads._place is None


def test_a_proxy_is_botocores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    botocore = Botocore()
    reads = reads_of(botocore, KEYS)
    botocore.asks("http://store.test/bucket/x")
    reads.learn("x")
    assert reads._place is None


def test_the_region_is_that_of_the_signature() -> None:
    botocore = Botocore()
    reads = reads_of(botocore, KEYS)
    botocore.asks("https://bucket.store.test/p/x", signing={"region": "eu-west-1"})
    reads.learn("p/x")
    assert reads._place == Place("https://bucket.store.test/", "eu-west-1")
    assert reads._pool is not None
    assert str(reads._pool.cert_reqs) == "CERT_REQUIRED"
    assert reads._pool.ca_certs
    reads.close()


def test_keys_are_written_as_botocore_writes_them() -> None:
    assert quoted("a~b/c d+é%&=?'()*!.jpg") == "a~b/c%20d%2B%C3%A9%25%26%3D%3F%27%28%29%2A%21.jpg"
