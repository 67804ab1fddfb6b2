"""`hapi extract`: the features of a dataset as a Parquet file."""

from __future__ import annotations

import time
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from compute_client.commands import options
from hapi.console import console, emit, say
from hapi.errors import InputError
from hapi.units import format_bytes, format_seconds


def extract_command(
    data: str = options.DATA,
    model: str = options.MODEL,
    weights: str = options.WEIGHTS,
    out: Path = typer.Option(..., help="The Parquet file to write."),
    batch_size: int = options.BATCH_SIZE,
    seed: int = typer.Option(0, min=0, help="Of random transforms."),
    server: str | None = options.SERVER,
    token: str | None = options.TOKEN,
    pushdown: str = options.PUSHDOWN,
    codec: str = options.CODEC,
    compression: str = options.COMPRESSION,
    device: str | None = options.DEVICE,
    engine: str = options.ENGINE,
    precision: str = options.PRECISION,
    workers: int = options.WORKERS,
    in_flight: int = options.IN_FLIGHT,
    buffer: str = options.BUFFER,
    bandwidth: str | None = options.BANDWIDTH,
    retry_seconds: float = options.RETRY_SECONDS,
    fallback: bool = options.FALLBACK,
    busy_seconds: float = options.BUSY_SECONDS,
    skip_errors: bool = options.SKIP_ERRORS,
    cache_dir: Path | None = options.CACHE_DIR,
    disk_cache_bytes: str = options.DISK_CACHE_BYTES,
    as_json: bool = options.JSON,
) -> None:
    """Write the features and labels of every sample into a Parquet file, in the dataset's order."""
    shown, notes = console(as_json), Console(stderr=True, highlight=False)
    from compute_client.files import check_target
    from compute_client.parquet import write_features

    if out.suffix.lower() not in (".parquet", ".pq"):
        raise InputError(f"--out {out}: the features are written as Parquet. Give a name like features.parquet.")
    check_target(out)
    began = time.monotonic()
    with (
        notes.status("reading the dataset and the network ...") as status,
        options.open_loader(
            data,
            model,
            weights=weights,
            server=server,
            token=token,
            pushdown=pushdown,
            batch_size=batch_size,
            seed=seed,
            codec=codec,
            compression=compression,
            device=device,
            engine=engine,
            precision=precision,
            workers=workers,
            in_flight=in_flight,
            buffer=buffer,
            bandwidth=bandwidth,
            retry_seconds=retry_seconds,
            fallback=fallback,
            busy_seconds=busy_seconds,
            skip_errors=skip_errors,
            cache_bytes="0",  # one pass: nothing is asked for again
            cache_dir=cache_dir,
            disk_cache_bytes=disk_cache_bytes,
        ) as loader,
    ):
        status.update("planning ...")
        loader.warm_up()
        notes.print(escape(str(loader.plan)), soft_wrap=True)
        rows = write_features(
            loader, out, done=lambda samples: status.update(f"{samples} of {loader.samples} samples ...")
        )
    seconds = time.monotonic() - began
    stats = loader.stats
    if as_json:
        emit(
            {
                "out": str(out),
                "model": model,
                "data": loader.dataset.uri,
                "samples": rows,
                "failed_samples": stats.failed_samples,
                "feature_shape": list(loader.feature_shape),
                "classes": list(loader.classes),
                "seconds": seconds,
                "bytes_received": stats.bytes_received,
                "requests": stats.requests,
                "out_bytes": out.stat().st_size,
                "plan": loader.plan.to_json(),
            }
        )
        return
    left_out = f", {stats.failed_samples} left out" if stats.failed_samples else ""
    say(
        shown,
        f"{escape(str(out))}: {rows} samples{left_out}, {format_bytes(out.stat().st_size)}, {format_seconds(seconds)}",
    )
