"""`hapi models`: which networks a storage server holds, and what is compiled of them on this machine."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from compute_client.commands import options
from hapi.console import console, emit, say
from hapi.errors import InputError
from hapi.units import format_bytes

models_app = typer.Typer(no_args_is_help=True, help="Networks: what a server holds, what is compiled here.")
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


@models_app.command("compile")
def compile_command(
    model: str = typer.Argument(help="torchvision:NAME, hf:PATH_OR_NAME or package.module:factory."),
    weights: str = options.WEIGHTS,
    cut: list[str] = typer.Option(["output"], "--cut", help="Compile what lies before this cut; may be repeated."),
    precision: str = options.PRECISION,
    device: str = typer.Option("cpu", help="Where it will run, as in cpu or cuda."),
    threads: int | None = typer.Option(None, min=1, help="Of one operation there, on a CPU; default: PyTorch's."),
    server_cache: Path | None = typer.Option(
        None, "--server-cache", help="The --cache-dir of a storage server of this machine; default: for clients here."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Compile a network's feature extractor on this machine now, so that jobs find it compiled.

    `hapi serve` and `hapi train` compile by themselves once it has paid; this is for those who cannot wait. Code that
    is no faster is not used, which is told. Needs a C++ compiler; where there is none, or what it made does not agree
    with the network, the exit status is 1.
    """
    import torch

    from compute_client.backbone import device_of
    from hapi.engine import Compiler, Precision, Shelf, check_precision
    from hapi.model import capture, load_model

    place = device_of(device)
    check_precision(precision, place)
    numeric: Precision = "bf16" if precision == "bf16" else "float32"
    shelf = Shelf(None if server_cache is None else server_cache / "compiled")
    torch.set_num_threads(threads or torch.get_num_threads())
    console_here = console(as_json)
    with Console(stderr=True).status(f"capturing {escape(model)} ..."):
        loaded = load_model(model, weights)
        graph = capture(loaded.backbone, loaded.example, name=loaded.name)
    rows = []
    compiler = Compiler(shelf)
    try:
        for name in dict.fromkeys(graph.cut(each).name for each in cut):
            program, _ = graph.split(name)
            with Console(stderr=True).status(f"compiling {escape(loaded.name)} up to {escape(name)} ..."):
                answer = compiler.wait(program.to(place), numeric, torch.get_num_threads())
            used = answer.run is not None
            rows.append({"cut": name, "made": answer.is_made, "used": used, "gain": answer.gain, "why": answer.why})
            if not as_json:
                say(console_here, f"{escape(loaded.name)} up to {escape(name)}: {escape(answer.why)}")
    finally:
        compiler.close()
    if as_json:
        emit({"digest": graph.digest, "name": graph.name, "precision": precision, "cuts": rows})
    if not all(row["made"] for row in rows):
        raise typer.Exit(1)
