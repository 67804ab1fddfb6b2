"""What a server is told: one frozen, validated value, from arguments and HAPI_SERVER_* variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hapi.engine import LARGEST_BATCH, Choice, Precision
from hapi.errors import InputError
from hapi.machine import processors
from hapi.settings import said
from hapi.units import parse_bytes

MIB = 2**20
DEFAULT_PORT = 8470


def _bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _words(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _numbered(device: str) -> str:
    """torch.cuda asks for the number at places, and its string without one means another GPU on another thread."""
    return "cuda:0" if device == "cuda" else device


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A number of bytes; text such as '2GB' or '512MiB' is read."""


def default_cache_dir() -> Path:
    """Where models and manifests are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hapi" / "server"


class ServerSettings(BaseSettings):
    """Settings of one storage server. Each field is also an environment variable, HAPI_SERVER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="HAPI_SERVER_", frozen=True, extra="forbid", env_ignore_empty=True)

    roots: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(min_length=1)
    """Addresses below which datasets may lie; in the environment separated by spaces or commas."""
    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """0 takes a free port."""
    tokens: Path | None = None
    """TOML file with the tenants, see storage_server.access.auth. Without it the server binds to loopback only."""
    cache_dir: Path = Field(default_factory=default_cache_dir)

    device: Annotated[str, AfterValidator(_numbered)] = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """cpu, or cuda with a number; without one, the first."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of one torch operation on the CPU; None is torch's own choice."""
    engine: Choice = "auto"
    """auto compiles a prefix in the background once that pays; eager never does, and is exact to the last bit."""
    precision: Precision = "float32"
    """For requests that name none. bf16 computes in bfloat16 where the device does so natively; what is sent keeps its
    dtype."""
    read_threads: int = Field(default=16, ge=1, le=512)
    """Objects read at the same time."""
    workers: int = Field(default_factory=processors, ge=1, le=512)
    """Images decoded and transformed at the same time; beside a GPU more than four in processes of their own (see
    hapi.data.decoding)."""
    max_batch: int | None = Field(default=None, ge=1, le=LARGEST_BATCH)
    """Most samples in one pass through a prefix; None is 32 on a CPU and 128 on a GPU. Memory may allow fewer."""
    memory_budget: Bytes | None = Field(default=None, ge=1)
    """Most bytes that weights, batches and (on a CPU) queues may take; free memory and cgroup limits hold as well."""
    queue_bytes: Bytes | None = Field(default=None, ge=MIB)
    """Most bytes of samples and features of all requests between reading and sending. None is 256 MiB on a CPU, where
    at most an eighth of the memory budget is taken for it, and 1 GiB of the host's memory beside a GPU, which computes
    larger batches and has more samples decoded meanwhile."""

    feature_cache_bytes: Bytes | None = Field(default=None, ge=0)
    """Most bytes of finished features that are kept in memory for whoever asks for the same; 0 keeps none. None is an
    eighth of the memory budget, 256 MiB at most. Where the device is the CPU they are part of the memory budget."""

    feature_disk_bytes: Bytes = Field(default=0, ge=0)
    """Most bytes of finished features that are kept below the cache directory as well, and over restarts; 0 keeps none.
    Several servers of one machine may share the directory."""

    cache_uri: str | None = None
    """A folder or prefix of a bucket, file:///path or s3://bucket/prefix, in which finished features are kept for all
    servers that are given it; None keeps none there. It must lie outside of the roots."""
    cache_uri_bytes: Bytes = Field(default=16 * 2**30, ge=MIB)
    """Most bytes of features at `cache_uri`; all servers that share it must be given the same."""

    max_requests: int = Field(default=128, ge=1, le=1024)
    """Extract and profile requests that run at the same time; each tenant has its part of them. One costs a thread and
    its part of the queues. Tenants take turns by rows among the requests that run, but by whole requests among those
    that wait: too few turns make the last of many tenants wait for all that the first asked for."""
    max_waiting: int = Field(default=64, ge=0, le=65536)
    """Requests that may wait for their turn; more are told to come back later (429). A tenant without any there may
    always have one, so that no other can fill the line."""
    max_body_bytes: Bytes = Field(default=4 * MIB, ge=1024)
    """Largest JSON request."""
    max_model_bytes: Bytes = Field(default=4 * 2**30, ge=1024)
    """Largest model archive."""
    max_cache_bytes: Bytes = Field(default=32 * 2**30, ge=1024)
    """Most bytes of model archives on disk; the least recently used one makes room."""
    max_link_bytes: Bytes = Field(default=256 * MIB, ge=1)
    """Longest answer of the bandwidth probe."""
    frame_bytes: Bytes = Field(default=MIB, ge=64 * 1024, le=4 * MIB)
    """Answers are sent in pieces of about this size; a single sample may be larger."""
    grace_seconds: float = Field(default=20.0, ge=0, le=3600)
    """After SIGTERM, how long running requests may take to finish before they are ended."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"

    @classmethod
    def load(cls, **values: Any) -> Self:
        """The settings from the environment, `values` on top; InputError names each field and what is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(part) for part in fault['loc']) or 'settings'}: {said(fault)}"
                for fault in error.errors(include_input=False, include_url=False)
            ]
            remedy = "Correct the option of that name, or HAPI_SERVER_<NAME>."
            if any(fault["loc"] == ("roots",) for fault in error.errors()):
                remedy = "Say what to serve: --root FOLDER or --root s3://bucket, or HAPI_SERVER_ROOTS."
            raise InputError(f"server settings, {'; '.join(faults)}. {remedy}") from None

    @property
    def queue_limit(self) -> int:
        """`queue_bytes`, or the default for the device."""
        return self.queue_bytes or (256 * MIB if self.device == "cpu" else 1024 * MIB)

    @property
    def batch_limit(self) -> int:
        """`max_batch`, or the default for the device."""
        return self.max_batch or (32 if self.device == "cpu" else 128)
