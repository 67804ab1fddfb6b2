"""From what botocore raises to the errors of a store: a refusal is never called 'not found'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as aws

from hapi.errors import AccessDeniedError, HapiError, InputError, ObjectNotFoundError, StoreError, StoreUnavailableError

_DENIED = {
    "403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch", "401", "Unauthorized", "UnauthorizedAccess",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "RequestExpired", "TokenRefreshRequired"}
_NO_BUCKET = {"NoSuchBucket"}
_NO_OBJECT = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_WRONG_REGION = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.ProfileNotFound,
    aws.SSOError,
    aws.UnauthorizedSSOTokenError,
    aws.TokenRetrievalError,
)
# HTTPClientError is the root of all of botocore's own connection, time-out, proxy, TLS and streaming errors
_NETWORK = (aws.HTTPClientError, aws.EndpointConnectionError)


@contextmanager
def translated(what: str, endpoint: str) -> Iterator[None]:
    """`what` names the object or bucket, `endpoint` the address, for the sentence the user reads."""
    try:
        yield
    except aws.ClientError as error:
        raise from_client_error(error, what, endpoint) from error
    except _CREDENTIALS as error:
        raise AccessDeniedError(
            f"{what}: no usable credentials for {endpoint} ({error}). Set HAPI_S3_ACCESS_KEY and HAPI_S3_SECRET_KEY, "
            "or an AWS profile or role; HAPI_S3_UNSIGNED=1 reads a public bucket."
        ) from error
    except aws.SSLError as error:
        raise StoreUnavailableError(
            f"{what}: no trusted connection to {endpoint} ({error}). "
            "Set HAPI_S3_CA_BUNDLE to the certificate authority of the store."
        ) from error
    except _NETWORK as error:
        raise StoreUnavailableError(
            f"{what}: {endpoint} did not answer ({error}). "
            "Check HAPI_S3_ENDPOINT, the network, and that the store runs."
        ) from error
    except (aws.ParamValidationError, aws.NoRegionError, ValueError) as error:
        if isinstance(error, HapiError):
            raise
        raise InputError(f"{what}: {error}. Check the URI and the HAPI_S3_* settings.") from error
    except aws.BotoCoreError as error:
        raise StoreError(f"{what}: {error}.") from error


def from_client_error(error: aws.ClientError, what: str, endpoint: str) -> HapiError:
    """The error that the store's own answer means."""
    details = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return from_answer(str(details.get("Code", "")), str(details.get("Message", "")), status, what, endpoint)


def from_answer(code: str, message: str, status: int, what: str, endpoint: str) -> HapiError:
    """The same from an S3 error code, the store's message and the HTTP status."""
    said = f"{code}: {message}" if message else code
    if code in _EXPIRED:  # in the middle of a job, and says nothing of the object
        return StoreUnavailableError(
            f"{what}: {endpoint} says that the credentials have expired ({said}). Renew them and begin again."
        )
    if code in _DENIED or status in (401, 403):
        return AccessDeniedError(
            f"{what}: {endpoint} refused the request ({said}). Check the credentials and that they may do this; "
            "some stores answer this for objects that do not exist, too."
        )
    if code in _NO_BUCKET:
        return ObjectNotFoundError(f"{what}: the bucket does not exist at {endpoint}. Check its name, or create it.")
    if code in _NO_OBJECT or status == 404:
        return ObjectNotFoundError(f"{what} does not exist at {endpoint}. Check the name.")
    if code in _WRONG_REGION or status == 301:
        return StoreError(f"{what}: the bucket lies in another region ({said}). Set HAPI_S3_REGION to it.")
    if status in (408, 429) or status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling"):
        return StoreUnavailableError(f"{what}: {endpoint} failed after all retries ({said}). Try again later.")
    if code == "InvalidRange" or status == 416:
        return StoreError(f"{what}: shorter than when it was listed ({said}). List the dataset again.")
    return StoreError(f"{what}: {endpoint} answered {status} {said}.")
