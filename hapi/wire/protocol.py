"""REST API v1 as types: what client and server say to each other. Both tiers validate with these models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hapi.plan import INPUT, OUTPUT

API = "/v1"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
ARCHIVE_TYPE = "application/octet-stream"
PROBLEM_JSON = "application/problem+json"

MAX_SPAN = 65_536
"""Most samples that one extract request may name."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, lower-case hexadecimal")]
CodecName = Literal["float32", "float16", "bfloat16", "int8"]
CompressionName = Literal["none", "lz4", "zstd", "packed"]
WayName = Literal[CompressionName, "trimmed"]
PrecisionName = Literal["float32", "bf16"]

_DIGEST = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_TRANSFORM: list[Any] = [
    {"name": "Resize", "args": {"size": [256], "antialias": True}},
    {"name": "CenterCrop", "args": {"size": [224, 224]}},
    {"name": "ToImage", "args": {}},
    {"name": "ToDtype", "args": {"dtype": "float32", "scale": True}},
    {"name": "Normalize", "args": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
]


class Message(BaseModel):
    """Base: unknown keys are refused, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetRequest(Message):
    """Registers what lies at `uri`; the server lists it once and answers the summary of the manifest."""

    uri: str = Field(min_length=1, max_length=4096, examples=["s3://photos/train"])
    refresh: bool = Field(default=False, description="List the store again even if a manifest of this URI is kept.")


class DatasetSummary(Message):
    """A manifest without its samples."""

    digest: Digest
    uri: str
    samples: int
    bytes: int = Field(description="Sum of the stored sizes of all samples.")
    classes: list[str]
    labelled: bool
    order_digest: Digest = Field(description="SHA-256 over (key, label) in order: equal lists have equal digests.")


class CutInfo(Message):
    name: str
    index: int
    shapes: list[list[int]] = Field(description="Per carried tensor, without the batch dimension.")
    dtypes: list[str]
    bytes_per_sample: int


class ModelInfo(Message):
    digest: Digest
    name: str
    bytes: int
    cuts: list[CutInfo]


class ModelList(Message):
    models: list[ModelInfo]


class ExtractRequest(Message):
    """Asks for the features of some samples at one cut; the answer is an Arrow IPC stream (see hapi.wire.stream).

    With cut `input` the stored object bytes are shipped and neither `model` nor `transform` is needed, unless of
    pictures only the part shall be shipped that `transform` reads (compression `trimmed`).
    The answer holds every index once, in any order.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "dataset": _DIGEST,
                    "indices": [0, 1, 2, 3],
                    "model": _DIGEST,
                    "cut": "layer4.1",
                    "transform": _TRANSFORM,
                    "seed": 0,
                    "epoch": 0,
                    "codec": "float32",
                }
            ]
        },
    )

    dataset: Digest
    indices: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=MAX_SPAN)
    cut: str = OUTPUT
    model: Digest | None = None
    transform: list[dict[str, Any]] | None = Field(default=None, max_length=64)
    seed: int = Field(default=0, ge=0, lt=2**63)
    epoch: int = Field(default=0, ge=0, lt=2**63)
    codec: CodecName = "float32"
    compression: WayName = Field(
        default="none",
        description="None changes a value. `packed` takes float32 tensors apart, and is smallest. `trimmed` is of cut "
        "`input`: of pictures the part that `transform` reads.",
    )
    precision: PrecisionName | None = Field(
        default=None, description="In which the server computes; without it, in that of its own setting."
    )

    @model_validator(mode="after")
    def _complete(self) -> ExtractRequest:
        if self.cut != INPUT and (self.model is None or self.transform is None):
            raise ValueError("a cut other than 'input' needs 'model' and 'transform'")
        if self.compression == "trimmed" and (self.cut != INPUT or self.transform is None):
            raise ValueError("compression 'trimmed' is of cut 'input', and needs 'transform'")
        if len(set(self.indices)) != len(self.indices):
            raise ValueError("'indices' names a sample twice")
        return self


class ProfileRequest(Message):
    """Asks the server to measure a model that it holds, on its own device, over some samples of a dataset."""

    model: Digest
    dataset: Digest
    transform: list[dict[str, Any]] = Field(max_length=64)
    samples: int = Field(default=32, ge=2, le=1024)
    refresh: bool = Field(default=False, description="Measure the model even if a measurement of it is remembered.")
    precision: PrecisionName | None = Field(
        default=None, description="In which the server computes; without it, in that of its own setting."
    )


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457); `type` is the `kind` of hapi.errors."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


BatchReason = Literal["knee", "memory", "share", "limit", "recovering", "exploring"]
"""Why a batch has its size: the throughput's knee, what fits the memory, the fair share of the queues' bytes, the
operator's limit, the slow way back up after running out of memory, or a size that is being tried."""


class PrefixStatus(BaseModel):
    """A part of a model that the server computes: how, how fast, what it takes. Bytes, seconds, images per second."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="Digest of the model; its first 12 digits for tenants who are no operators.")
    model_name: str
    cut: str
    device: str
    engine: str = Field(description="What runs it, `eager` or a compiled engine.")
    precision: str = Field(default="float32", description="In which it computes.")
    batch: int = Field(description="Samples of a whole batch, as last decided.")
    reason: BatchReason
    images_per_s: float = Field(description="While the device runs it; 0 before the first batch.")
    samples: int = Field(description="Samples computed since the server has known it.")
    waiting: int = Field(description="Samples that are ready and wait for the device.")
    weight_bytes: int
    predicted_peak_bytes: int = Field(description="Weights and one batch of the size `batch`.")
    measured_peak_bytes: int | None = Field(default=None, description="None where nothing measures it.")
    out_of_memory: int = Field(description="Times that memory ran out and a smaller batch went on.")


class TenantStatus(BaseModel):
    """What one tenant (or several, summed, under the name `(others)`) has of the server."""

    model_config = ConfigDict(extra="allow")

    name: str
    share: float
    active: int = Field(description="Requests that run.")
    waiting: int = Field(description="Requests that wait for their turn.")
    samples: int
    failed: int
    shared: int = Field(description="Samples answered by work that was done for another request, or kept from one.")
    queue_seconds: float = Field(description="Mean time that recent samples waited for the device.")
    device_seconds: float = Field(description="Time of the device that was spent for it, its part of shared batches.")
    held_bytes: int = Field(description="Of samples and features between reading and sending.")


OTHERS = "(others)"
"""Name under which a tenant sees all others together."""


class BucketStatus(BaseModel):
    """The bucket in which servers share features."""

    model_config = ConfigDict(extra="allow")

    bytes: int = Field(description="Of all that lies there, as last listed.")
    hits: int = Field(description="Features found there by this server.")
    failures: int = Field(description="Times that it failed, or gave something damaged.")
    dropped: int = Field(description="Features that were not kept there: it was too slow, too full, or down.")


class CacheStatus(BaseModel):
    """What the server keeps of finished features."""

    model_config = ConfigDict(extra="allow")

    memory_bytes: int
    hits: int = Field(description="Times that kept features were found, in memory, on disk or in the bucket.")
    continued: int = Field(description="Samples that were computed from the kept features of a shallower cut.")
    bucket: BucketStatus | None = Field(default=None, description="None where the server has none.")


class ServerStatus(BaseModel):
    """What `GET /v1/status` tells about a server."""

    model_config = ConfigDict(extra="allow")

    version: str
    device: str
    precision: str = "float32"
    budget_bytes: int
    used_bytes: int
    requests_active: int
    requests_queued: int
    samples_done: int
    models: list[str]
    roots: list[str]
    draining: bool = False
    backlog_seconds: float = Field(default=0.0, description="Predicted seconds of everything admitted or waiting.")
    queue_bytes: int = Field(default=0, description="Most bytes of all samples between reading and sending.")
    rss_bytes: int = Field(default=0, description="Resident memory of the server's process.")
    machine: str = Field(default="", description="What all processes on its machine have in common; empty if unknown.")
    prefixes: list[PrefixStatus] = Field(default_factory=list)
    tenants: list[TenantStatus] = Field(default_factory=list)
    cache: CacheStatus | None = None
