"""The scenarios of `hapi bench`: each module here is one, and its name is the command's.

A scenario has `register(app: typer.Typer)`, which adds its command. At its top it imports only what is quick (typer,
benchmarks.bench); torch and the like inside of its functions: `hapi bench --help` imports them all.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


def names() -> list[str]:
    """The commands: the modules of this package, with dashes for underscores."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


class Scenarios(TyperGroup):
    """Commands that are imported when they are asked for: a command of another room pays nothing for them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in names():
            return None
        app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        import_module(f"{__name__}.{cmd_name.replace('-', '_')}").register(app)
        return typer.main.get_command(app)
