"""The `hapi` command. Each room registers its own commands through the entry-point group `hapi.commands`."""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib.metadata import entry_points

import typer
from rich.console import Console

import hapi
from hapi.errors import HapiError

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


def build_app() -> typer.Typer:
    """The command line with every installed room's commands."""
    app = typer.Typer(
        name="hapi",
        help="Split-execution transfer learning: the frozen part of a network runs next to the object store.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            typer.echo(hapi.__version__)
            raise typer.Exit

    for entry in sorted(entry_points(group="hapi.commands"), key=lambda entry: entry.name):
        entry.load()(app)
    return app


def main() -> None:
    """Runs the command line; a HapiError becomes one sentence and its exit code, never a traceback.

    With `--json` the error is also the JSON document: {"error": {"kind", "message"}}. HAPI_DEBUG=1 shows the traceback.
    """
    try:
        build_app()()
    except HapiError as error:
        if os.environ.get("HAPI_DEBUG"):
            traceback.print_exc()
        if "--json" in sys.argv:
            json.dump({"error": {"kind": error.kind, "message": str(error)}}, sys.stdout)
            sys.stdout.write("\n")
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_escaped(error)}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _escaped(error: HapiError) -> str:
    from rich.markup import escape

    return escape(str(error))


if __name__ == "__main__":
    main()
