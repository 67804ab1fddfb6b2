"""`hapi data push` and `hapi data synth`: getting pictures into a store."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from hapi.console import console, emit, say
from hapi.errors import InputError
from hapi.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from hapi.data.transfer import Progress

_JSON = typer.Option(False, "--json", help="One JSON document on standard output; the rest on standard error.")
_CREATE = typer.Option(False, "--create", help="Make the bucket if it is missing.")
_WORKERS = typer.Option(8, min=1, max=256, help="Objects in flight.")


def register(app: typer.Typer) -> None:
    """Adds this room's commands to `app`."""
    data = typer.Typer(no_args_is_help=True, help="Put pictures into a folder or bucket.")
    data.command("push")(push_command)
    data.command("synth")(synth_command)
    app.add_typer(data, name="data")


def push_command(
    source: str = typer.Argument(help="A folder, file:///path or s3://bucket/prefix."),
    target: str = typer.Argument(help="Where its objects go, under the same names."),
    create: bool = _CREATE,
    overwrite: bool = typer.Option(False, help="Send also what is there already, byte for byte."),
    workers: int = _WORKERS,
    as_json: bool = _JSON,
) -> None:
    """Copy a dataset into a store, several objects at a time; what is there already is skipped."""
    from hapi.data.buckets import create_bucket
    from hapi.data.stores import normalize_uri, open_store
    from hapi.data.transfer import copy_objects

    source, target = normalize_uri(source), normalize_uri(target)
    if source == target:
        raise InputError(f"{source}: source and target are the same place. Name two.")
    if target.startswith(source.rstrip("/") + "/"):
        raise InputError(f"{target}: lies in {source}, so the copy would be copied as well. Name a place outside.")
    if create:
        create_bucket(target)
    began = time.monotonic()
    origin, destination = open_store(source), open_store(target)
    try:
        with _progress(f"{source} to {target}") as progress:
            done = copy_objects(origin, destination, overwrite=overwrite, workers=workers, progress=progress)
    finally:
        origin.close()
        destination.close()
    if not done.sent + done.skipped:
        raise InputError(f"{source}: nothing in it to copy. Check the path.")
    seconds = time.monotonic() - began
    say(
        console(as_json),
        f"{done.sent} objects sent to {escape(target)}, {done.skipped} were there already: "
        f"{format_bytes(done.bytes)} in {format_seconds(seconds)}.",
    )
    if as_json:
        emit({"source": source, "target": target, "sent": done.sent, "skipped": done.skipped,
              "bytes": done.bytes, "seconds": seconds})  # fmt: skip


def synth_command(
    target: str = typer.Argument(help="A folder, file:///path or s3://bucket/prefix."),
    images: int = typer.Option(300, min=1, max=10_000_000, help="How many pictures."),
    classes: int = typer.Option(5, min=1, help="How many kinds of pictures, a folder each."),
    seed: int = typer.Option(0, min=0, help="Another seed gives other pictures of the same kinds."),
    size: str = typer.Option("500x375", help="Width x height in pixels; every fourth picture is upright."),
    create: bool = _CREATE,
    workers: int = _WORKERS,
    as_json: bool = _JSON,
) -> None:
    """Write photo-like pictures with labels, for machines without data: the same ones for the same seed."""
    from hapi.data.buckets import create_bucket
    from hapi.data.stores import normalize_uri, open_store
    from hapi.data.synth import looks
    from hapi.data.transfer import put_pictures

    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not match:
        raise InputError(f"--size {size!r}: say width and height, as in 500x375.")
    target = normalize_uri(target)
    if create:
        create_bucket(target)
    began = time.monotonic()
    store = open_store(target)
    try:
        with _progress(f"pictures to {target}", images) as progress:
            done = put_pictures(
                store, images, classes=classes, seed=seed, size=(int(match[1]), int(match[2])), workers=workers,
                progress=progress,
            )  # fmt: skip
    finally:
        store.close()
    seconds = time.monotonic() - began
    names = sorted(kind.name for kind in looks(min(classes, images)))
    say(
        console(as_json),
        f"{done.sent} pictures of {len(names)} kinds ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''}) "
        f"in {escape(target)}: {format_bytes(done.bytes)} in {format_seconds(seconds)}.",
    )
    if as_json:
        emit({"target": target, "images": done.sent, "classes": names, "bytes": done.bytes, "seconds": seconds})


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[volume]}"))
    screen = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=total, volume="")
        volume = 0

        def advance(size: int) -> None:
            nonlocal volume
            volume += size
            bar.update(task, advance=1, volume=format_bytes(volume))

        yield advance
