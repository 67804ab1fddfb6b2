"""The one exception tree. Every error a user can cause names the thing, the cause and the remedy.

`kind` is the stable name of an error on the wire (the `type` of a problem+json body) and in `--json` output;
`exit_code` is what the command line ends with: 2 for bad usage or input, 1 for a failure.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HapiError(Exception):
    """Base of everything this project raises on purpose. One positional argument, so that it pickles."""

    kind: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1
    retry_after_seconds: float = 0.0
    """How long a server asked to wait before another try; 0 if it did not."""

    def __init_subclass__(cls) -> None:
        if "kind" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} needs a `kind` of its own: it is how the error is known on the wire")


# -- bad input -----------------------------------------------------------------------------------------------


class InputError(HapiError, ValueError):
    """The caller gave something that cannot work; nothing was started."""

    kind = "bad-input"
    exit_code = 2


class CaptureError(InputError):
    """A model could not be captured as a graph."""

    kind = "capture-failed"


class UnknownCutError(InputError):
    """A cut was named that the graph does not have."""

    kind = "unknown-cut"


class ArchiveError(InputError):
    """A model archive was refused: malformed, too large, or asking for an operation that is not allowed."""

    kind = "bad-archive"


class DigestMismatchError(ArchiveError):
    """The bytes received are not the bytes that were named."""

    kind = "digest-mismatch"


class TransformError(InputError):
    """A transform is not portable, unknown, or has impossible arguments."""

    kind = "bad-transform"


class ManifestError(InputError):
    """A dataset could not be listed or described."""

    kind = "bad-dataset"


class ProfileError(InputError):
    """A profile document is malformed or incomplete."""

    kind = "bad-profile"


class ImageError(InputError):
    """The bytes of one sample are not an image that can be decoded."""

    kind = "bad-image"


class SampleError(InputError):
    """One sample could not be read, decoded or computed; `index` is its position in the dataset."""

    kind = "bad-sample"

    def __init__(self, message: str, index: int = -1) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.index)


# -- object stores -------------------------------------------------------------------------------------------


class StoreError(HapiError):
    """An object store failed."""

    kind = "store-failed"


class ObjectNotFoundError(StoreError):
    """The bucket, folder or object does not exist."""

    kind = "not-found"
    exit_code = 2


class AccessDeniedError(StoreError):
    """The store refused the credentials (never reported as 'not found')."""

    kind = "access-denied"
    exit_code = 2


class StoreUnavailableError(StoreError):
    """The store did not answer after the allowed retries, or this process is too short of files or memory to ask it."""

    kind = "store-unavailable"


# -- the wire and the service --------------------------------------------------------------------------------


class WireError(HapiError):
    """A feature stream was malformed."""

    kind = "bad-stream"


class TruncatedStreamError(WireError):
    """A feature stream ended without its end marker; the samples not received can be asked for again."""

    kind = "truncated-stream"


class ServiceError(HapiError):
    """The storage server answered with an error."""

    kind = "service-failed"


class UnauthorizedError(ServiceError):
    """No token, or one the server does not know."""

    kind = "unauthorized"
    exit_code = 2


class ForbiddenError(ServiceError):
    """The token is known but may not read this dataset or do this."""

    kind = "forbidden"
    exit_code = 2


class UnknownModelError(ServiceError):
    """The server does not hold the model with this digest; upload it first."""

    kind = "unknown-model"


class UnknownDatasetError(ServiceError):
    """The server does not hold the manifest with this digest; register the dataset again."""

    kind = "unknown-dataset"


class BusyError(ServiceError):
    """The server is full or draining; try again after `retry_after_seconds`."""

    kind = "busy"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.retry_after_seconds)


class MemoryBudgetError(ServiceError):
    """A prefix does not fit in the memory budget even with a batch of one.

    Attributes:
        needed_bytes, available_bytes: what it takes and what there is, where known.
        fits: name of the deepest cut of the same model that does fit, None if none does or nobody looked.
        fits_bytes: what that cut takes with a batch of one.
    """

    kind = "does-not-fit"

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int | None = None,
        available_bytes: int | None = None,
        fits: str | None = None,
        fits_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.fits = fits
        self.fits_bytes = fits_bytes


class TooLargeError(ServiceError):
    """A request or upload is over a limit of the server."""

    kind = "too-large"
    exit_code = 2


class ServerUnreachableError(ServiceError):
    """No answer from the storage server's address after the allowed retries."""

    kind = "unreachable"


class BatchTimeoutError(HapiError, TimeoutError):
    """A loader's batch was not complete within the `timeout` that its user set."""

    kind = "timed-out"


def _tree(root: type[HapiError]) -> dict[str, type[HapiError]]:
    kinds = {root.kind: root}
    for child in root.__subclasses__():
        kinds |= _tree(child)
    return kinds


def from_kind(kind: str, message: str) -> HapiError:
    """The error that `kind` names on the wire; an unknown kind (a newer server) becomes a ServiceError."""
    return _tree(HapiError).get(kind, ServiceError)(message)
