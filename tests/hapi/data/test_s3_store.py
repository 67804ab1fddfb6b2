"""A bucket as an object store, against a real S3 server; faults it does not show on demand, against a fake client."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import stamina
import torch
from botocore.exceptions import ClientError, ReadTimeoutError, SSLError
from botocore.response import StreamingBody
from PIL import Image
from torchvision.transforms import v2

from hapi.data import Sample, StoreSettings, describe_transform, load_sample, open_store
from hapi.data.decoding import Processes
from hapi.data.stores import S3Store, described
from hapi.data.stores.s3 import make_client
from hapi.errors import (
    AccessDeniedError,
    HapiError,
    InputError,
    ObjectNotFoundError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

BUCKET = "store-tests"


@pytest.fixture(scope="module")
def bucket(s3_store: Endpoint) -> str:
    S3Store(BUCKET, "", s3_store.settings()).create_bucket()
    return BUCKET


@pytest.fixture
def store(s3_store: Endpoint, bucket: str, request: pytest.FixtureRequest) -> Iterator[S3Store]:
    """An empty prefix of its own for each test."""
    store = S3Store(bucket, f"at/{request.node.name[:40]}", s3_store.settings(attempts=2))
    yield store
    store.close()


@pytest.mark.s3
def test_puts_lists_and_reads_back(store: S3Store) -> None:
    assert list(store.list()) == []
    contents = {f"a/{index:02d} é+%.bin": os.urandom(index) for index in range(12)}
    for key, data in contents.items():
        store.put(key, data)
    store.put("b.jpg", b"0123456789")
    found = {item.key: item for item in store.list()}
    assert {key: item.size for key, item in found.items()} == {**{k: len(v) for k, v in contents.items()}, "b.jpg": 10}
    for key, data in contents.items():
        assert store.get(key) == data
        assert store.info(key) == found[key]
    assert [item.key for item in store.list("b")] == ["b.jpg"]
    assert list(store.list("nothing")) == []


@pytest.mark.s3
def test_reads_exact_ranges(store: S3Store) -> None:
    store.put("x", b"0123456789")
    assert store.get("x", 3) == b"3456789"
    assert store.get("x", 3, 4) == b"3456"
    assert store.get("x", 0, 10) == b"0123456789"
    assert store.get("x", 10, 0) == b""
    with pytest.raises(StoreError, match=r"9 bytes from 3 .* holds 7 .*list the dataset again"):
        store.get("x", 3, 9)
    with pytest.raises(StoreError, match="shorter than when it was listed"):
        store.get("x", 11, 1)


@pytest.mark.s3
def test_processes_open_it_again_and_decode_what_lies_in_it(store: S3Store) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(picture, "JPEG")
    for number in range(5):
        store.put(f"{number}.jpg", picture.getvalue())
    spec = describe_transform(v2.Compose([v2.ToImage(), v2.Resize((8, 8)), v2.ToDtype(torch.float32, scale=True)]))
    samples = [(n, Sample(f"{n}.jpg", 0, len(picture.getvalue()), None, "")) for n in (3, 0, 7, 4)]
    place = described(store)
    assert place is not None
    with closing(Processes()) as processes:
        assert processes.wait(120)
        found = processes.fetch(place, samples, spec, seed=0, epoch=0, shape=(3, 8, 8), most_bytes=2**20)
    assert [one is not None for one in found] == [True, True, False, True]
    assert found[0] is not None
    assert torch.equal(found[0].tensor, load_sample(picture.getvalue(), spec))


@pytest.mark.s3
def test_a_version_changes_with_the_content(store: S3Store) -> None:
    store.put("x", b"one")
    before = store.info("x").version
    store.put("x", b"two")
    assert store.info("x").version != before


@pytest.mark.s3
def test_listing_goes_over_all_pages(s3_store: Endpoint, bucket: str) -> None:
    store = S3Store(bucket, "pages", s3_store.settings(), page_size=3)
    keys = [f"{index:02d}/x" for index in range(10)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    assert sorted(found.key for found in store.list()) == keys
    store.close()


@pytest.mark.s3
def test_wrong_keys_are_denied_and_never_not_found(s3_store: Endpoint, store: S3Store) -> None:
    store.put("x", b"x")
    for settings in (s3_store.settings(secret_key="wrong"), s3_store.settings(access_key="test:nobody")):
        stranger = S3Store(BUCKET, "at", settings)
        for use in (lambda s=stranger: s.get("x"), lambda s=stranger: s.info("x"), lambda s=stranger: list(s.list()),
                    lambda s=stranger: s.put("x", b""), lambda s=stranger: s.get("not/there")):  # fmt: skip
            with pytest.raises(AccessDeniedError, match=r"refused .*credentials") as caught:
                use()
            assert "does not exist" not in str(caught.value).split(";")[0]
        stranger.close()


@pytest.mark.s3
def test_unsigned_requests_to_a_private_bucket_fail_and_are_never_not_found(s3_store: Endpoint, store: S3Store) -> None:
    store.put("x", b"x")
    settings = StoreSettings.load(endpoint=s3_store.url, region="us-east-1", unsigned=True)
    stranger = S3Store(BUCKET, "at", settings)
    with pytest.raises(StoreError) as caught:  # AWS answers 403; this server knows no anonymous requests: 400
        stranger.get("x")
    assert not isinstance(caught.value, ObjectNotFoundError)
    stranger.close()


@pytest.mark.s3
def test_a_missing_object_and_a_missing_bucket_are_told_apart(s3_store: Endpoint, store: S3Store) -> None:
    for use in (lambda: store.get("none"), lambda: store.info("none")):
        with pytest.raises(ObjectNotFoundError, match="none does not exist at http"):
            use()
    elsewhere = S3Store("no-such-bucket", "", s3_store.settings())
    for use in (lambda: elsewhere.get("x"), lambda: list(elsewhere.list()), lambda: elsewhere.put("x", b"")):
        with pytest.raises(ObjectNotFoundError, match="bucket does not exist"):
            use()
    elsewhere.close()


@pytest.mark.s3
def test_many_threads_share_one_client(store: S3Store) -> None:
    store.put("x", b"shared")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: store.get("x"), range(64))) == {b"shared"}


def _read_in_child(store: S3Store, results: Any) -> None:
    try:
        results.put(store.get("x"))
    except HapiError as error:
        results.put(error)


@pytest.mark.s3
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_connected_store_survives_pickling_and_a_fork(store: S3Store) -> None:
    store.put("x", b"data")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert again.get("x") == b"data"
    again.close()
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, results))
    child.start()
    assert results.get(timeout=60) == b"data"
    child.join(60)
    assert child.exitcode == 0
    assert store.get("x") == b"data"


@pytest.mark.s3
def test_settings_come_from_the_environment(
    s3_store: Endpoint, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", b"data")
    for name, value in s3_store.environment().items():
        monkeypatch.setenv(name, value)
    assert open_store(store.uri).get("x") == b"data"
    for name in s3_store.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_store.secret_key)
    assert open_store(store.uri).get("x") == b"data"


# -- what a real server does not show on demand ---------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    stamina.set_testing(True, attempts=20, cap=True)
    yield
    stamina.set_testing(False)


class FakeClient:
    """Answers `get_object` with what is prepared: a body and its promised length, or an exception."""

    def __init__(self, *answers: tuple[bytes, int] | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.meta = SimpleNamespace(endpoint_url="http://store.test")

    def get_object(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        data, promised = answer
        return {"Body": StreamingBody(io.BytesIO(data), None), "ContentLength": promised}


def faked(*answers: tuple[bytes, int] | Exception, **settings: Any) -> tuple[S3Store, FakeClient]:
    store = S3Store("bucket", "p", StoreSettings.load(endpoint="http://store.test", unsigned=True, **settings))
    client: Any = FakeClient(*answers)
    store._client, store._owner = client, os.getpid()
    return store, client


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    store, client = faked((b"half", 8), (b"", 8), (b"complete", 8))
    assert store.get("x", 4, 8) == b"complete"
    assert [request["Range"] for request in client.requests] == ["bytes=4-11"] * 3


def test_breaking_off_for_ever_ends_after_the_allowed_attempts() -> None:
    store, client = faked(*[(b"half", 8)] * 9, attempts=4)
    with pytest.raises(StoreUnavailableError, match=r"broke off 4 times \(4 of 8 bytes arrived\)"):
        store.get("x")
    assert len(client.requests) == 4


def test_an_object_that_shrank_is_not_asked_for_again() -> None:
    store, client = faked((b"short", 5))
    with pytest.raises(StoreError, match="holds 5 of them"):
        store.get("x", 0, 8)
    assert len(client.requests) == 1


def test_time_outs_within_the_body_are_retried() -> None:
    class Stuck(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise ReadTimeoutError(endpoint_url="http://store.test")

    store, client = faked((b"complete", 8))
    whole = client.get_object
    stuck = [True]

    def get_object(**request: Any) -> dict[str, Any]:
        if stuck.pop() if stuck else False:
            return {"Body": StreamingBody(Stuck(), None), "ContentLength": 8}
        return whole(**request)

    client.get_object = get_object  # type: ignore[method-assign]
    assert store.get("x") == b"complete"


def client_error(code: str, status: int, message: str = "said so") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (client_error("AccessDenied", 403), AccessDeniedError, "refused"),
        (client_error("403", 403), AccessDeniedError, "refused"),
        (client_error("SignatureDoesNotMatch", 403), AccessDeniedError, "Check the credentials"),
        (client_error("InvalidAccessKeyId", 403), AccessDeniedError, "Check the credentials"),
        (client_error("ExpiredToken", 400), StoreUnavailableError, "have expired .ExpiredToken"),
        (client_error("NoSuchKey", 404), ObjectNotFoundError, "s3://bucket/p/x does not exist"),
        (client_error("NoSuchBucket", 404), ObjectNotFoundError, "bucket does not exist"),
        (client_error("SlowDown", 503), StoreUnavailableError, "after all retries"),
        (client_error("InternalError", 500), StoreUnavailableError, "after all retries"),
        (client_error("PermanentRedirect", 301), StoreError, "HAPI_S3_REGION"),
        (client_error("InvalidRange", 416), StoreError, "List the dataset again"),
        (client_error("Odd", 418), StoreError, "answered 418 Odd: said so"),
        (SSLError(endpoint_url="https://store.test", error="self-signed"), StoreUnavailableError, "HAPI_S3_CA_BUNDLE"),
    ],
)
def test_what_the_store_answers_becomes_the_right_error(
    raised: Exception, expected: type[HapiError], says: str
) -> None:
    store, client = faked(raised)
    with pytest.raises(expected, match=says) as caught:
        store.get("x")
    assert type(caught.value) is expected
    assert len(client.requests) == 1  # botocore has retried what may be retried


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_address_where_nothing_answers_is_unavailable() -> None:
    settings = StoreSettings.load(
        endpoint=f"http://127.0.0.1:{free_port()}", access_key="a", secret_key="b", attempts=1
    )
    store = S3Store("bucket", "", settings)
    with pytest.raises(StoreUnavailableError, match=r"did not answer .*HAPI_S3_ENDPOINT"):
        store.get("x")
    with pytest.raises(StoreUnavailableError):
        list(store.list())


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "HAPI_S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.usefixtures("no_credentials")
def test_no_credentials_is_a_sentence_with_the_remedy() -> None:
    store = S3Store("bucket", "", StoreSettings.load(endpoint="http://127.0.0.1:9", attempts=1))
    for use in (lambda: store.get("x"), lambda: list(store.list())):
        with pytest.raises(AccessDeniedError, match=r"no usable credentials .*HAPI_S3_ACCESS_KEY.*HAPI_S3_UNSIGNED"):
            use()
    unknown = S3Store("bucket", "", StoreSettings.load(profile="nobody"))
    with pytest.raises(AccessDeniedError, match="nobody"):
        unknown.get("x")


@pytest.mark.usefixtures("no_credentials")
def test_an_impossible_bucket_name_is_bad_input() -> None:
    store = S3Store("Not A Bucket!", "", StoreSettings.load(access_key="a", secret_key="b"))
    with pytest.raises(InputError, match="Check the URI"):
        store.get("x")


@pytest.mark.usefixtures("no_credentials")
def test_a_custom_endpoint_changes_checksums_and_addressing(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**settings: Any) -> Any:
        client = make_client(StoreSettings.load(**settings))
        client.close()
        return client.meta.config

    custom = config(endpoint="http://store.test", readers=77, attempts=3, retry_mode="adaptive")
    assert custom.request_checksum_calculation == custom.response_checksum_validation == "when_required"
    assert custom.s3["addressing_style"] == "path"
    assert custom.max_pool_connections == 77
    assert custom.retries == {"mode": "adaptive", "total_max_attempts": 3}
    aws = config()
    assert aws.request_checksum_calculation == "when_supported"
    assert aws.s3["addressing_style"] == "auto"
    assert config(endpoint="http://store.test", addressing="virtual").s3["addressing_style"] == "virtual"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://other.test")
    assert config().request_checksum_calculation == "when_required"


def test_requester_pays_is_said_in_every_request() -> None:
    store, client = faked((b"x", 1), requester_pays=True)
    store.get("x")
    assert client.requests[0]["RequestPayer"] == "requester"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"endpoint": "store:9000"}, "HAPI_S3_ENDPOINT: .*http://host:9000"),
        ({"endpoint": "http://key:hidden@store"}, "must not hold credentials"),
        ({"access_key": "only"}, "belong together"),
        ({"session_token": "hidden"}, "SESSION_TOKEN belongs to keys"),
        ({"access_key": "a", "secret_key": "hidden", "unsigned": True}, "without credentials"),
        ({"readers": 0}, "HAPI_S3_READERS"),
        ({"attempts": 1000}, "HAPI_S3_ATTEMPTS"),
        ({"addressing": "odd"}, "HAPI_S3_ADDRESSING"),
    ],
)
def test_settings_that_cannot_work_are_named_without_their_secrets(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        StoreSettings.load(**values)
    assert "hidden" not in str(caught.value)
    assert "Correct or unset it" in str(caught.value)


def test_secrets_are_not_in_the_repr_of_settings_or_stores() -> None:
    settings = StoreSettings.load(access_key="visible-no", secret_key="hidden", session_token="token")
    for text in (repr(settings), str(settings), repr(S3Store("b", "", settings))):
        assert not any(secret in text for secret in ("visible-no", "hidden", "token'"))
