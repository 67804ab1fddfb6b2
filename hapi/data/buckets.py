"""Making the bucket that a dataset is to be put into."""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import urlsplit

from hapi.data.stores import S3Store, open_store
from hapi.data.stores.s3_errors import from_answer
from hapi.errors import HapiError, InputError, StoreUnavailableError
from hapi.settings import StoreSettings


def create_bucket(uri: str, settings: StoreSettings | None = None) -> bool:
    """Makes the bucket of `s3://bucket/prefix` if it is missing, and says whether it did; folders need no making.

    Through the `minio` client where it is installed, the settings name an endpoint and keys, and it understands the
    store; else through boto3.
    """
    settings = settings or StoreSettings.load()
    store = open_store(uri, settings)
    if not isinstance(store, S3Store):
        return False
    try:
        if settings.endpoint and settings.access_key and settings.secret_key and find_spec("minio"):
            keys = settings.access_key.get_secret_value(), settings.secret_key.get_secret_value()
            made = _create_with_minio(store.bucket, settings.endpoint, keys, settings)
            if made is not None:
                return made
        return store.create_bucket()
    finally:
        store.close()


def _create_with_minio(bucket: str, endpoint: str, keys: tuple[str, str], settings: StoreSettings) -> bool | None:
    """None if the client does not understand the store's answers."""
    import urllib3
    from minio import Minio
    from minio.error import InvalidResponseError, MinioException, S3Error

    address = urlsplit(endpoint)
    what, token = f"s3://{bucket}", settings.session_token
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(settings.connect_timeout_seconds, settings.read_timeout_seconds),
        retries=urllib3.Retry(settings.attempts - 1, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(settings.ca_bundle) if settings.ca_bundle else None,
    )
    try:
        client = Minio(
            endpoint=address.netloc,
            access_key=keys[0],
            secret_key=keys[1],
            session_token=token.get_secret_value() if token else None,
            secure=address.scheme == "https",
            region=settings.region,
            http_client=pool,
        )
        if client.bucket_exists(bucket_name=bucket):
            return False
        client.make_bucket(bucket_name=bucket, location=settings.region)
        return True
    except S3Error as error:
        code = error.code or ""
        raise from_answer(code, error.message or "", error.response.status, what, endpoint) from error
    except InvalidResponseError:  # rclone's server calls its XML text/xml, which this client takes for something else
        return None
    except urllib3.exceptions.HTTPError as error:
        raise StoreUnavailableError(
            f"{what}: {endpoint} did not answer ({error}). "
            "Check HAPI_S3_ENDPOINT, the network, and that the store runs."
        ) from error
    except (MinioException, ValueError) as error:
        if isinstance(error, HapiError):
            raise
        raise InputError(f"{what}: {error}. Check the URI and the HAPI_S3_* settings.") from error
    finally:
        pool.clear()
