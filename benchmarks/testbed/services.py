"""What runs on the storage host: a real S3 server with the photographs, and `hapi serve` beside it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import rclone
from benchmarks.localserver import local_server
from benchmarks.objectstore import KINDS
from benchmarks.testbed.processes import ProgramFailedError
from benchmarks.testbed.testbed import LOOPBACK, Testbed
from hapi.errors import InputError

BUCKET = "photographs"
START_SECONDS = 300.0
COMPILE_SECONDS = 1800.0
_STAGE = re.compile(r'^hapi_stage_seconds_total\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Store:
    """Photographs in an S3 store: their address, and the variables that lead there from either host."""

    uri: str
    samples: int
    bytes: int
    for_storage: Mapping[str, str] = field(default_factory=dict, repr=False)
    for_compute: Mapping[str, str] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()
    """What readers of a result are to know of it."""


@dataclass(frozen=True)
class Server:
    """A running `hapi serve`: the address for the compute host, and the variables that let clients in."""

    url: str
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    inner_url: str | None = None
    """Its address on its own host; None for a server elsewhere."""
    tokens: tuple[str, ...] = field(default=(), repr=False)
    """Of its tenants, in their order; empty where it asks for none."""

    def stages(self, bed: Testbed) -> dict[str, float]:
        """Seconds of work by stage since it started, summed over threads; nothing for a server elsewhere."""
        if self.inner_url is None:
            return {}
        return {name: float(value) for name, value in _STAGE.findall(bed.fetch(f"{self.inner_url}/metrics"))}


def store_kind() -> str:
    """Which program of benchmarks.objectstore keeps the photographs: HAPI_BENCH_STORE, or rclone."""
    kind = os.environ.get("HAPI_BENCH_STORE", rclone.NAME)
    if kind not in KINDS:
        raise InputError(f"HAPI_BENCH_STORE is {kind!r}. Known are {', '.join(sorted(KINDS))}.")
    return kind


def start_store(bed: Testbed, photographs: Path) -> Store:
    """Starts an S3 server on the storage host and puts the photographs there; it ends with the testbed."""
    kind = store_kind()
    KINDS[kind].install()  # now: a host of the testbed reaches no package index
    root = bed.folder / "store"
    command = [sys.executable, "-m", "benchmarks.objectstore", "start", "--root", str(root), "--kind", kind]
    command += ["--host", bed.storage.address]
    told = bed.run(bed.storage, command, seconds=START_SECONDS).document
    variables = {
        "HAPI_S3_ENDPOINT": told["url"],
        "HAPI_S3_ACCESS_KEY": told["access_key"],
        "HAPI_S3_SECRET_KEY": told["secret_key"],
        "HAPI_S3_REGION": told["region"],
    }
    there = {**variables, "HAPI_S3_ENDPOINT": bed.link.reach(told["url"])}
    return put_photographs(bed, Store("", 0, 0, variables, there, (KINDS[kind].REMARK,)), photographs, BUCKET)


def put_photographs(bed: Testbed, store: Store, photographs: Path, bucket: str) -> Store:
    """Puts photographs into a bucket of their own; the same store, with that for its data."""
    uri = f"s3://{bucket}"
    push = [sys.executable, "-m", "hapi.cli", "data", "push", str(photographs), uri, "--create", "--json"]
    pushed = bed.run(bed.storage, push, store.for_storage, seconds=START_SECONDS).document
    return replace(store, uri=uri, samples=pushed["sent"], bytes=pushed["bytes"])


@dataclass(frozen=True)
class SentModel:
    """A network as a storage server keeps it: a cache directory to begin with, and its size on the wire.

    `compiled` says what became of compiling it; None if that was not tried.
    """

    folder: Path
    bytes: int
    compiled: str | None = None

    def give_server(self, cache: Path) -> None:
        """Puts the network, and what was compiled of it, into a server's cache directory."""
        for name in ("models", "compiled"):
            if (self.folder / name).is_dir():
                shutil.copytree(self.folder / name, cache / name)

    def give_client(self, cache: Path) -> None:
        """Puts what was compiled of the network into a client's cache directory, XDG_CACHE_HOME."""
        if (self.folder / "compiled").is_dir():
            shutil.copytree(self.folder / "compiled", cache / "hapi" / "engine")


def send_model(bed: Testbed, store: Store, model: str, weights: str, *, is_compiled: bool = False) -> SentModel:
    """Sends a network to a server from the server's own host, so that later ones can begin with it.

    With `is_compiled` the whole network is compiled there as well; code that is no faster is not used.
    """
    kept = Path(tempfile.mkdtemp(prefix="models-", dir=bed.folder))
    command = [sys.executable, "-m", "hapi.cli", "models"]
    with start_server(bed, store, cache=kept) as server:
        assert server.inner_url is not None
        push = [*command, "push", model, "--weights", weights, "--json", "--server", server.inner_url]
        told = bed.run(bed.storage, push, server.variables, seconds=START_SECONDS).document
    if not is_compiled:
        return SentModel(kept, told["bytes"])
    words = [*command, "compile", model, "--weights", weights, "--json", "--server-cache", str(kept)]
    try:
        made = bed.run(bed.storage, words, seconds=COMPILE_SECONDS).document
    except ProgramFailedError as error:  # everything runs without
        return SentModel(kept, told["bytes"], f"not compiled: {error}")
    return SentModel(kept, told["bytes"], "; ".join(cut["why"] for cut in made["cuts"]))


@contextlib.contextmanager
def start_server(
    bed: Testbed,
    store: Store,
    options: Sequence[str] = (),
    *,
    cache: Path | None = None,
    tenants: int = 1,
) -> Iterator[Server]:
    """Runs a fresh `hapi serve` over the store, which has nothing of an earlier one but what is in `cache`, where it
    keeps things if they shall outlive it. With more than one of `tenants` each has a token."""
    with tempfile.TemporaryDirectory(prefix="server-", dir=bed.folder) as folder:
        variables, cache = {}, cache or Path(folder) / "cache"
        tokens: tuple[str, ...] = ()
        more = [*options, "--cache-dir", str(cache)]
        if bed.storage.address != LOOPBACK or tenants > 1:  # other hosts reach it: it asks for a token
            tokens = tuple(secrets.token_urlsafe(24) for _ in range(tenants))
            variables["HAPI_TOKEN"] = tokens[0]
            file = Path(folder) / "tokens.toml"
            file.touch(mode=0o600)
            file.write_text(
                "".join(f'[tenants.bench-{number}]\ntoken = "{one}"\n' for number, one in enumerate(tokens))
            )
            more += ["--tokens", str(file)]
        with local_server(
            store.uri,
            options=[*more, "--host", bed.storage.address],
            environment=bed.storage.environment(store.for_storage),
            prefix=bed.storage.prefix,
        ) as running:
            yield Server(bed.link.reach(running.url), variables, running.url, tokens)
