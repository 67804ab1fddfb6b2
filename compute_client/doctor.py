"""What can be wrong before a job begins: each check says one sentence."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from hapi.errors import HapiError
from hapi.units import format_bandwidth, format_bytes, format_seconds
from profiler.remote import ServerClient

DISTRIBUTION = "hapi-split"
LITTLE_MEMORY = 2**30


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is well, and what was found."""

    name: str
    ok: bool
    said: str


def examine(server: str | None = None, token: str | None = None, data: str | None = None) -> list[Check]:
    """All checks, in the order in which one would look. Nothing is raised: what fails is a check that is not ok."""
    checks = [*_versions(), _attempt("devices", _devices), _attempt("memory", _memory), _attempt("pictures", _pictures)]
    client: ServerClient | None = None
    if server is not None:
        reached, client = _reach(server, token)
        checks.append(reached)
        if client is not None:
            checks.append(_attempt("link", lambda: _link(client)))
    if data is not None:
        if client is not None:
            checks.append(_attempt("data, by the server", lambda: _registered(client, data)))
        here = _attempt("data, from here", lambda: _listed(data))
        if client is not None and not here.ok:  # with a server, this process needs no access of its own
            here = Check(here.name, True, f"not reachable from here, and need not be with a server ({here.said})")
        checks.append(here)
    if client is not None:
        client.close()
    return checks


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except HapiError as error:
        return Check(name, False, str(error))


def _versions() -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")
    found, wrong = [], []
    for text in requires(DISTRIBUTION) or ():
        requirement, _, marker = text.partition(";")
        wanted = re.match(r"([\w.-]+)(?:\[.*\])?(?:>=([\d.]+))?", requirement)
        if wanted is None or "extra ==" in marker or "win32" in marker:
            continue
        name, least = wanted[1], wanted[2]
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.strip()} is not installed")
            continue
        if least is not None and _numbers(installed) < _numbers(least):
            wrong.append(f"{requirement.strip()} is needed, {installed} is installed")
        else:
            found.append(f"{name} {installed}")
    yield Check("packages", not wrong, "; ".join(wrong) if wrong else ", ".join(found))


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 15, 0) for '2.15.0+cpu'."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _devices() -> str:
    import torch

    threads = f"CPU with {torch.get_num_threads()} threads for torch"
    if not torch.cuda.is_available():
        return f"{threads}; no CUDA device"
    names = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        names.append(f"cuda:{number} {name}, {format_bytes(free)} of {format_bytes(total)} free")
    return f"{threads}; {'; '.join(names)}"


def _memory() -> str:
    from hapi.machine import free_bytes

    free = free_bytes("cpu")
    said = f"{format_bytes(free)} may still be taken by this process (machine and control groups)"
    if free < LITTLE_MEMORY:
        raise HapiError(f"{said}: too little for most networks. Free some, or raise the container's limit.")
    return said


def _pictures() -> str:
    from hapi.data.trimming import is_available

    if is_available():
        return "libturbojpeg is here: a server can trim pictures for those who ask for it"
    return (
        "no libturbojpeg (Debian: libturbojpeg0): a server here sends pictures whole, also to those who ask for parts"
    )


def _reach(server: str, token: str | None) -> tuple[Check, ServerClient | None]:
    try:
        client = ServerClient(server, token)
        status = client.status()
    except HapiError as error:
        return Check("server", False, str(error)), None
    roots = ", ".join(status.roots) or "nothing to this token"
    busy = f"{status.requests_active} requests active, {status.requests_queued} waiting"
    said = (
        f"version {status.version} at {client.url}, {status.device}, "
        f"memory budget {format_bytes(status.budget_bytes)}, {busy}; serves {roots}"
    )
    if status.draining:
        return Check("server", False, f"{said}; it is stopping and takes no requests"), client
    return Check("server", True, said), client


def _link(client: ServerClient) -> str:
    from profiler.link import probe_link

    link = probe_link(client.link, max_seconds=3.0)
    return f"{format_bandwidth(link.bandwidth_bits_per_s)}, {format_seconds(link.latency_seconds)} round trip"


def _registered(client: ServerClient, data: str) -> str:
    from hapi.data import normalize_uri

    summary = client.register(normalize_uri(data))
    return f"{summary.samples} samples, {len(summary.classes)} classes, {format_bytes(summary.bytes)} at {summary.uri}"


def _listed(data: str) -> str:
    from hapi.data import build_manifest, dataset_root, open_store, read_sample

    manifest = build_manifest(data)
    store = open_store(dataset_root(data)[0])
    try:
        size = len(read_sample(store, manifest.sample(0)))
    finally:
        store.close()
    return f"{len(manifest)} samples, {len(manifest.classes)} classes; the first has {format_bytes(size)}"
