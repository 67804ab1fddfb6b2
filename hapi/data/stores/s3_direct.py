"""Reading objects at a third of the processor time: requests that are signed as botocore signs them, and nothing else.

botocore resolves an endpoint, validates parameters and walks through some twenty hooks for each object. All of that
gives the same for every object of a bucket, so it is learned from the first one that botocore has read. Whatever is not
a plain success afterwards is botocore's again: its retries, redirects and errors are those of the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import urllib3
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from hapi.settings import StoreSettings

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

SIGNED_AS = ("s3v4", "v4")
MOST_REFUSALS = 8
"""After so many refusals in a row, what was learned does not hold: botocore reads everything from then on."""
EVENT = "before-sign.s3.GetObject"


class Credentials(Protocol):
    """Those of botocore: they are refreshed when they are about to expire."""

    def get_frozen_credentials(self) -> ReadOnlyCredentials: ...


@dataclass(frozen=True)
class Place:
    """Of a bucket: the address that the names of its objects follow, and the region that requests are signed for (None:
    they are not signed)."""

    address: str
    region: str | None


class DirectReads:
    """Of one bucket, beside a client of one process. Thread-safe."""

    def __init__(
        self, client: S3Client, credentials: Credentials | None, settings: StoreSettings, ca_bundle: str | None
    ) -> None:
        """`credentials` are the client's; None: requests are not signed. Nothing is learned where the client checks
        sums of what it reads."""
        self._credentials, self._settings, self._ca_bundle = credentials, settings, ca_bundle
        self._asked = threading.local()
        self._lock = threading.Lock()
        self._place: Place | None = None
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._refusals = 0
        config: Any = client.meta.config
        if config.response_checksum_validation == "when_required":
            client.meta.events.register(EVENT, self._asking)

    def read(self, key: str, span: str | None) -> bytes | None:
        """The object's bytes, or those of a range as HTTP writes it; None where botocore has to ask."""
        place, pool = self._place, self._pool
        if place is None or pool is None or self._refusals >= MOST_REFUSALS:
            return None
        target = place.address + quoted(key)
        headers = self._headers(place, target, span)
        try:
            answer = pool.urlopen(
                "GET",
                "/" + target.split("/", 3)[3],
                headers=headers,
                retries=False,
                redirect=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            log.debug("%s: %s; botocore tries again", target, error)
            return None
        is_part = answer.status == 206 or "Content-Range" in answer.headers  # which rclone's server says with a 200
        if answer.status in (200, 206) and is_part == (span is not None):
            self._refusals = 0
            return answer.data
        if answer.status in (400, 401, 403):
            self._refusals += 1
        return None

    def learn(self, key: str) -> None:
        """Botocore has just read this object, on this thread."""
        asked, self._asked.seen = getattr(self._asked, "seen", None), None
        if asked is None or self._place is not None:
            return
        address, region = asked
        if not address.endswith("/" + quoted(key)) or get_environ_proxies(address):
            return
        with self._lock:
            if self._place is None:
                self._place = Place(address.removesuffix(quoted(key)), region)
                self._pool = self._connections(address)

    def close(self) -> None:
        """Gives connections back."""
        with self._lock:
            pool, self._pool, self._place = self._pool, None, None
        if pool is not None:
            pool.close()

    def _asking(self, request: AWSRequest, region_name: str, signature_version: Any, **_: Any) -> None:
        """Botocore is about to sign a request for an object."""
        signing = request.context.get("signing", {})
        if signature_version == UNSIGNED and self._credentials is None:
            self._asked.seen = request.url, None
        elif signature_version in SIGNED_AS and self._credentials is not None:
            self._asked.seen = request.url, signing.get("region") or region_name
        else:
            self._asked.seen = None

    def _headers(self, place: Place, target: str, span: str | None) -> Mapping[str, str]:
        headers = {} if span is None else {"Range": span}
        if self._settings.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if place.region is None or self._credentials is None:
            return headers
        request = AWSRequest("GET", target, headers)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", place.region).add_auth(request)
        return dict(request.headers.items())

    def _connections(self, address: str) -> urllib3.HTTPConnectionPool:
        settings = self._settings
        options: dict[str, Any] = {
            "maxsize": settings.readers,
            "timeout": urllib3.Timeout(settings.connect_timeout_seconds, settings.read_timeout_seconds),
        }
        if address.startswith("https:"):
            options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": self._ca_bundle or get_cert_path(True)}
        return urllib3.connection_from_url(address, **options)


def quoted(key: str) -> str:
    """A key as botocore writes it in an address."""
    return quote(key, safe="/~")
