"""A bucket, or a prefix of one, as an object store: any S3-compatible endpoint, through boto3."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
import stamina
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import HTTPClientError, IncompleteReadError

from hapi.data.stores.base import ObjectInfo, check_key, check_range
from hapi.data.stores.s3_direct import DirectReads
from hapi.data.stores.s3_errors import translated
from hapi.errors import ObjectNotFoundError, StoreError, StoreUnavailableError
from hapi.settings import StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LISTING_PAGE = 1000  # the most that S3 gives in one answer


class _BrokenReadError(Exception):
    """A body ended early: worth asking again."""


class S3Store:
    """The objects of `bucket` whose keys start with `prefix/`.

    The client is made on first use, once per process: a store may be pickled to workers and survives a fork.
    """

    def __init__(self, bucket: str, prefix: str, settings: StoreSettings, *, page_size: int = LISTING_PAGE) -> None:
        self._bucket = bucket
        self._prefix = check_key(prefix.strip("/"), f"s3://{bucket}") + "/" if prefix.strip("/") else ""
        self._settings = settings
        self._page_size = page_size
        self._client: S3Client | None = None
        self._direct: DirectReads | None = None
        self._owner = 0
        self._lock = threading.Lock()

    @property
    def bucket(self) -> str:
        return self._bucket

    @property
    def settings(self) -> StoreSettings:
        """How it is reached."""
        return self._settings

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_direct": None, "_owner": 0, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix:
            check_key(prefix, self.uri)
        pages = (
            self._connected(self.uri)
            .get_paginator("list_objects_v2")
            .paginate(
                Bucket=self._bucket,
                Prefix=self._prefix + prefix,
                PaginationConfig={"PageSize": self._page_size},
                **self._payer(),
            )
        )
        with translated(self.uri, self._endpoint()):
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"][len(self._prefix) :]
                    if key:
                        yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        what = f"{self.uri}/{check_key(key, self.uri)}"
        if length == 0:
            return b""
        span = None
        if offset or length is not None:
            span = f"bytes={offset}-" if length is None else f"bytes={offset}-{offset + length - 1}"
        client = self._connected(what)
        direct = self._direct
        with translated(what, self._endpoint()):
            data = None if direct is None else direct.read(self._prefix + key, span)
        if data is None:
            data = self._read(client, what, key, span)
            if direct is not None:
                direct.learn(self._prefix + key)
        if length is not None and len(data) != length:
            raise StoreError(
                f"{what}: {length} bytes from {offset} were asked for, the object holds {len(data)} of them. "
                "It changed since it was listed; list the dataset again."
            )
        return data

    def _read(self, client: S3Client, what: str, key: str, span: str | None) -> bytes:
        """The bytes by way of botocore, with all its patience."""
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + key, **self._payer()}
        if span is not None:
            request["Range"] = span
        try:
            # botocore retries the request; a body that breaks off is ours to ask for again
            for attempt in stamina.retry_context(
                on=_BrokenReadError, attempts=self._settings.attempts, timeout=None, wait_initial=0.1, wait_max=5.0
            ):
                with attempt, translated(what, self._endpoint()):
                    data, promised = _read(client, request)
                    if len(data) != promised:
                        raise _BrokenReadError(f"{len(data)} of {promised} bytes arrived")
        except _BrokenReadError as error:
            raise StoreUnavailableError(
                f"{what}: the answer broke off {self._settings.attempts} times ({error}). "
                "Check the network and the store."
            ) from error
        return data

    def put(self, key: str, data: bytes) -> None:
        what = f"{self.uri}/{check_key(key, self.uri)}"
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
        client = self._connected(what)
        with translated(what, self._endpoint()):
            client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, ContentType=kind, **self._payer())

    def delete(self, key: str) -> None:
        what = f"{self.uri}/{check_key(key, self.uri)}"
        client = self._connected(what)
        with contextlib.suppress(ObjectNotFoundError), translated(what, self._endpoint()):
            client.delete_object(Bucket=self._bucket, Key=self._prefix + key, **self._payer())

    def info(self, key: str) -> ObjectInfo:
        what = f"{self.uri}/{check_key(key, self.uri)}"
        client = self._connected(what)
        with translated(what, self._endpoint()):
            head = client.head_object(Bucket=self._bucket, Key=self._prefix + key, **self._payer())
        return ObjectInfo(key, head["ContentLength"], head["ETag"].strip('"'))

    def create_bucket(self) -> bool:
        """Makes the bucket if it is not there; says whether it did."""
        client = self._connected(self.uri)
        with translated(f"s3://{self._bucket}", self._endpoint()):
            try:
                client.head_bucket(Bucket=self._bucket)
                return False
            except client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
            region = client.meta.region_name
            where: Any = {"CreateBucketConfiguration": {"LocationConstraint": region}}
            client.create_bucket(Bucket=self._bucket, **({} if region == "us-east-1" else where))
            return True

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            direct, self._direct = self._direct, None
            if client is not None and self._owner == os.getpid():
                client.close()
                if direct is not None:
                    direct.close()

    def _payer(self) -> Any:
        return {"RequestPayer": "requester"} if self._settings.requester_pays else {}

    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url if self._client else self._settings.endpoint or "S3"

    def _connected(self, what: str) -> S3Client:
        if self._client is None or self._owner != os.getpid():
            with self._lock, translated(what, self._settings.endpoint or "S3"):
                if self._client is None or self._owner != os.getpid():
                    session = make_session(self._settings)
                    client = make_client(self._settings, session)
                    self._direct = direct_reads(self._settings, session, client)
                    self._client, self._owner = client, os.getpid()
        return self._client


def make_session(settings: StoreSettings) -> boto3.Session:
    """A session of its own, since boto3's default one is not thread-safe."""
    return boto3.Session(profile_name=settings.profile, region_name=settings.region)


def direct_reads(settings: StoreSettings, session: boto3.Session, client: S3Client) -> DirectReads:
    """Reads with the credentials and certificates of a client of that session."""
    credentials: Any = None if settings.unsigned else session.get_credentials()
    if settings.access_key is not None and settings.secret_key is not None:
        token = settings.session_token.get_secret_value() if settings.session_token else None
        credentials = Credentials(settings.access_key.get_secret_value(), settings.secret_key.get_secret_value(), token)
    bundle = str(settings.ca_bundle) if settings.ca_bundle else session._session.get_config_variable("ca_bundle")
    return DirectReads(client, credentials, settings, bundle)


def make_client(settings: StoreSettings, session: boto3.Session | None = None) -> S3Client:
    """A boto3 client as the settings say."""
    session = session or make_session(settings)
    configured = session._session.get_scoped_config().get("endpoint_url")
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = settings.endpoint or environment or configured
    quirks: dict[str, Any] = {}
    if endpoint:  # many S3-compatible stores refuse the newer checksums and virtual host names
        quirks = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    addressing = settings.addressing if settings.addressing != "auto" or not endpoint else "path"
    config = Config(
        retries={"total_max_attempts": settings.attempts, "mode": settings.retry_mode},
        max_pool_connections=settings.readers,
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        s3={"addressing_style": addressing},
        **({"signature_version": UNSIGNED} if settings.unsigned else {}),
        **quirks,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=session.region_name or "us-east-1",
        aws_access_key_id=settings.access_key.get_secret_value() if settings.access_key else None,
        aws_secret_access_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
        aws_session_token=settings.session_token.get_secret_value() if settings.session_token else None,
        verify=str(settings.ca_bundle) if settings.ca_bundle else None,
        config=config,
    )


def _read(client: S3Client, request: dict[str, Any]) -> tuple[bytes, int]:
    """The body, and how many bytes the headers promised."""
    answer = client.get_object(**request)
    body = answer["Body"]
    try:
        return body.read(), answer["ContentLength"]
    except (HTTPClientError, IncompleteReadError) as error:
        raise _BrokenReadError(str(error)) from error
    finally:
        body.close()
