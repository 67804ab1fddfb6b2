"""`hapi models`: which networks a storage server holds."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from compute_client.commands import options
from hapi.console import console, emit, say
from hapi.errors import InputError
from hapi.units import format_bytes

models_app = typer.Typer(no_args_is_help=True, help="Networks that a storage server holds.")
_SERVER = typer.Option(..., help="Address of the storage server.")


@models_app.command("push")
def push_command(
    model: str = typer.Argument(help="torchvision:NAME, hf:PATH_OR_NAME or package.module:factory."),
    weights: str = options.WEIGHTS,
    server: str = _SERVER,
    token: str | None = options.TOKEN,
    as_json: bool = options.JSON,
) -> None:
    """Upload a network's feature extractor, so that the first job need not."""
    from hapi.model import archive_bytes, capture, load_model
    from profiler.remote import ServerClient

    with ServerClient(server, token) as client:
        client.status()  # an unreachable server is known before the network is
        with Console(stderr=True).status(f"capturing {escape(model)} ..."):
            loaded = load_model(model, weights)
            graph = capture(loaded.backbone, loaded.example, name=loaded.name)
        is_new = client.ensure_model(graph)
    if as_json:
        emit({"digest": graph.digest, "name": graph.name, "bytes": archive_bytes(graph), "new": is_new})
        return
    said = "uploaded" if is_new else "was there already"
    say(console(), f"{graph.digest}  {escape(graph.name)}, {format_bytes(archive_bytes(graph))}: {said}")


@models_app.command("list")
def list_command(server: str = _SERVER, token: str | None = options.TOKEN, as_json: bool = options.JSON) -> None:
    """List the networks that were uploaded with this token."""
    from rich.table import Table

    from profiler.remote import ServerClient

    with ServerClient(server, token) as client:
        models = client.models()
    if as_json:
        emit({"models": [model.model_dump() for model in models]})
        return
    if not models:
        say(console(), "no models. `hapi models push` uploads one; training does so by itself.")
        return
    table = Table("digest", "name", "bytes", "cuts", box=None)
    for model in models:
        table.add_row(model.digest[:16], escape(model.name), format_bytes(model.bytes), str(len(model.cuts)))
    console().print(table)


@models_app.command("rm")
def remove_command(
    digest: str = typer.Argument(help="Of the model; its first digits do if no other model has them."),
    server: str = _SERVER,
    token: str | None = options.TOKEN,
    as_json: bool = options.JSON,
) -> None:
    """Let the server forget a network. Jobs that use it go on: their clients upload it again when needed."""
    from profiler.remote import ServerClient

    with ServerClient(server, token) as client:
        found = [model for model in client.models() if model.digest.startswith(digest.lower())] if digest else []
        if len(found) != 1:
            raise InputError(f"{digest!r} names {len(found)} models of {server}. `hapi models list` shows them.")
        client.delete_model(found[0].digest)
    if as_json:
        emit({"digest": found[0].digest, "name": found[0].name})
        return
    say(console(), f"removed {found[0].digest}  {escape(found[0].name)}")
