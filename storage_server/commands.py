"""`hapi serve`: the storage server on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import socket

    from storage_server.service import Service
    from storage_server.settings import ServerSettings

Roots = Annotated[
    list[str] | None,
    typer.Option("--root", help="Folder or s3://bucket/prefix below which datasets may lie; may be repeated."),
]

SWITCH_SECONDS = 0.0005
"""After which a thread that runs Python lets another go on, beside a GPU. With Python's own 0.005 the thread that tells
the GPU what to do waits so long whenever another has much to do: of resnet50, eager, a server gave 1,400 to 2,000
photographs/s instead of 1,900 to 2,200 (one H200, 16 processors)."""


def make_service(settings: ServerSettings) -> Service:
    """The service that is run; benchmarks put one with another policy in its place."""
    from storage_server.service import Service

    return Service(settings)


def register(app: typer.Typer) -> None:
    """Adds this room's commands to `app`."""
    app.command("serve")(serve)


def serve(
    root: Roots = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. (default 8470)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. (default cpu)")] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Most memory for weights, batches and queues, like 2GB. (default what is free)")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="TOML file with \\[tenants.NAME] tables of token and roots; needed to serve other machines."),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where models and manifests are kept. (default ~/.cache/hapi/server)")
    ] = None,
    feature_cache_bytes: Annotated[
        str | None, typer.Option(help="Most memory for features that were asked for, like 1GB; 0 keeps none.")
    ] = None,
    feature_disk_bytes: Annotated[
        str | None, typer.Option(help="Most bytes of features below the cache directory, like 50GB. (default 0)")
    ] = None,
    cache_uri: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix or folder in which servers share features they computed.")
    ] = None,
    cache_uri_bytes: Annotated[str | None, typer.Option(help="Most bytes of features there. (default 16GiB)")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto (compiled in the background once it pays), eager, or compiled.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16. (default float32)")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most samples in one pass through a network.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of one network operation.")] = None,
    workers: Annotated[int | None, typer.Option(help="Images decoded at the same time.")] = None,
    read_threads: Annotated[int | None, typer.Option(help="Objects read at the same time.")] = None,
    log_level: Annotated[str | None, typer.Option(help="critical, error, warning, info or debug.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line once the server is ready.")] = False,
) -> None:
    """Runs the storage server: next to the data, computes the frozen part of a network, and streams its features.

    Every option is also an environment variable, HAPI_SERVER_<NAME>; how to reach an S3 store is HAPI_S3_<NAME>.
    """
    import logging
    import sys

    from storage_server.http.app import app_of
    from storage_server.http.server import allow_files, listen, url_of
    from storage_server.http.server import serve as run
    from storage_server.memory.outofmemory import exempt_from_collection
    from storage_server.settings import ServerSettings

    given = {
        "roots": tuple(root) if root else None,
        "host": host,
        "port": port,
        "device": device,
        "memory_budget": memory_budget,
        "tokens": tokens,
        "cache_dir": cache_dir,
        "feature_cache_bytes": feature_cache_bytes,
        "feature_disk_bytes": feature_disk_bytes,
        "cache_uri": cache_uri,
        "cache_uri_bytes": cache_uri_bytes,
        "engine": engine,
        "precision": precision,
        "max_batch": max_batch,
        "threads": threads,
        "workers": workers,
        "read_threads": read_threads,
        "log_level": log_level,
    }
    settings = ServerSettings.load(**{name: value for name, value in given.items() if value is not None})
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    allow_files()
    if settings.device != "cpu":
        sys.setswitchinterval(SWITCH_SECONDS)
    service = make_service(settings)
    try:
        service.check_roots()
        sock = listen(settings.host, settings.port)
    except BaseException:
        service.close()
        raise
    with exempt_from_collection():
        run(app_of(service), sock, lambda: _announce(service, sock, url_of(sock), as_json), settings.log_level)


def _announce(service: Service, sock: socket.socket, url: str, as_json: bool) -> None:
    """Says where the server listens, what it serves, its budget, and how to reach it."""
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    from hapi.console import console, emit
    from hapi.units import format_bytes

    settings, budget = service.settings, service.budget
    port = sock.getsockname()[1]
    if as_json:
        emit(
            {
                "url": url,
                "port": port,
                "roots": list(service.roots.uris),
                "budget_bytes": budget.total_bytes,
                "device": settings.device,
            }
        )
    guarded = f"{len(service.tokens.tenants)} tenants with tokens"
    example = f'hapi.DataLoader("{service.roots.uris[0]}", backbone=..., server="{url}")'
    rows = [
        ("listens on", url if settings.host != "0.0.0.0" else f"{url} (and every other address of this machine)"),
        ("serves", "\n".join(service.roots.uris)),
        ("to", "this machine only: no tokens are set" if service.tokens.is_open else guarded),
        ("computes on", f"{settings.device}, at most {settings.batch_limit} samples at once"),
        ("memory budget", f"{format_bytes(budget.total_bytes)}, {format_bytes(budget.queue_bytes)} of it for queues"),
        ("keeps models in", str(settings.cache_dir)),
        *([("keeps features in", service.kept.bucket.uri)] if service.kept.bucket is not None else []),
        ("reach it", f"{example}\nhapi train --server {url} --data ..."),
        ("API", f"{url}/docs   metrics {url}/metrics"),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    console(as_json).print(Panel(table, title="HAPI storage server", subtitle="Ctrl-C stops it", expand=False))
