"""`hapi train`: a head on the features of a frozen network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from compute_client.commands import options
from compute_client.progress import TerminalProgress
from hapi.console import console, emit, say
from hapi.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from compute_client.train import TrainResult


def train_command(
    data: str = options.DATA,
    model: str = options.MODEL,
    weights: str = options.WEIGHTS,
    epochs: int = typer.Option(5, min=1, help="Passes over the training part."),
    batch_size: int = options.BATCH_SIZE,
    lr: float | None = typer.Option(None, help="Learning rate; default 0.01 for sgd, 0.001 for adam."),
    optimizer: str = typer.Option("sgd", help="sgd (momentum 0.9) or adam."),
    weight_decay: float = typer.Option(0.0, min=0, help="Of the optimiser."),
    seed: int = options.SEED,
    val_split: float = typer.Option(0.2, help="Part of the samples that is held out for validation; 0 for none."),
    head: str = typer.Option("linear", help="linear or mlp."),
    hidden: int = typer.Option(512, min=1, help="Width of the mlp's hidden layer."),
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
    cache_bytes: str | None = options.CACHE_BYTES,
    cache_dir: Path | None = options.CACHE_DIR,
    disk_cache_bytes: str = options.DISK_CACHE_BYTES,
    augment_views: int | None = options.AUGMENT_VIEWS,
    out: Path | None = typer.Option(None, help="Write the head here (safetensors, with a .json beside it)."),
    as_json: bool = options.JSON,
) -> None:
    """Train a classifier on the features of a frozen network, wherever they are computed."""
    shown, notes = console(as_json), Console(stderr=True, highlight=False)
    _check_out(out)
    from compute_client.train import HeadTrainer

    with (
        notes.status("reading the dataset and the network ..."),
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
            epochs=epochs,
            workers=workers,
            in_flight=in_flight,
            buffer=buffer,
            bandwidth=bandwidth,
            retry_seconds=retry_seconds,
            fallback=fallback,
            busy_seconds=busy_seconds,
            skip_errors=skip_errors,
            cache_bytes=cache_bytes,
            cache_dir=cache_dir,
            disk_cache_bytes=disk_cache_bytes,
            augment_views=augment_views,
        ) as loader,
    ):
        trainer = HeadTrainer(
            loader,
            epochs=epochs,
            head=head,  # type: ignore[arg-type]
            hidden=hidden,
            optimizer=optimizer,  # type: ignore[arg-type]
            lr=lr,
            weight_decay=weight_decay,
            val_split=val_split,
        )
    say(notes, f"{loader.samples} samples, {len(loader.classes)} classes at {escape(loader.dataset.uri)}")
    with TerminalProgress(notes, epochs) as progress:
        result = trainer.fit(progress)
    loader.close()
    if out is not None:
        trainer.save(out)
        say(notes, f"written: {escape(str(out))}")
    if as_json:
        emit({**result.to_json(), "model": model, "data": loader.dataset.uri, "head": head, "seed": seed})
    else:
        _show(shown, result)


def _check_out(out: Path | None) -> None:
    """Before hours of training, not after."""
    from compute_client.files import check_target
    from hapi.errors import InputError

    if out is None:
        return
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: the head is written as safetensors. Give a name like head.safetensors.")
    check_target(out)


def _show(out: Console, result: TrainResult) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    rows: list[tuple[str, Any]] = [
        ("loss", f"{result.final_loss:.4f}"),
        ("accuracy", "not validated" if result.accuracy is None else f"{result.accuracy:.1%} of {result.val_samples}"),
        ("seconds", f"{format_seconds(result.seconds)}, {format_seconds(result.setup_seconds)} of it to begin"),
        ("received", f"{format_bytes(result.bytes_received)} in {result.requests} requests, {result.retries} repeated"),
        ("peak memory", format_bytes(result.peak_rss_bytes)),
    ]
    if result.cached_samples:
        rows.append(("from the cache", f"{result.cached_samples} samples"))
    if result.failed_samples:
        rows.append(("left out", f"{result.failed_samples} samples that could not be read"))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", str(value))
    out.print(table)
