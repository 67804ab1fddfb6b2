"""The `hapi` command. Each room registers its own commands through the entry-point group `hapi.commands`."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

import hapi
from hapi.allocator import keep_freed_memory
from hapi.console import emit
from hapi.errors import HapiError

BAD_USAGE = 2
INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C

# the parser's own error class; typer exports only this one of its children
_UsageError: Any = typer.BadParameter.__mro__[1]


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
    """Runs the command line; a HapiError or bad usage becomes one sentence and its exit code, never a traceback.

    With `--json` the error is also the JSON document: {"error": {"kind", "message"}}. HAPI_DEBUG=1 shows the traceback.
    """
    keep_freed_memory()
    try:
        code = build_app()(standalone_mode=False)  # what a command returns (nothing), or the code of typer.Exit
    except HapiError as error:
        if os.environ.get("HAPI_DEBUG"):
            traceback.print_exc()
        sys.exit(_report(error.kind, str(error), error.exit_code))
    except _UsageError as error:
        said = error.format_message()
        if not said:  # no arguments at all: the help was shown instead
            sys.exit(BAD_USAGE)
        command = error.ctx.command_path if error.ctx is not None else "hapi"
        sys.exit(_report("bad-usage", f"{said.rstrip('.')}. `{command} --help` shows what can be said.", BAD_USAGE))
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(_report("interrupted", "interrupted", code) if code == INTERRUPTED else code)


def _report(kind: str, message: str, code: int) -> int:
    """Tells an error to people, and with `--json` also to programs; gives the exit code back."""
    if "--json" in sys.argv:
        emit({"error": {"kind": kind, "message": message}})
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}")
    return code


if __name__ == "__main__":
    main()
