"""The compute tier's commands. Each imports what it needs when it runs."""

from __future__ import annotations

import typer

from compute_client.commands.doctor import doctor_command
from compute_client.commands.extract import extract_command
from compute_client.commands.models import models_app
from compute_client.commands.profile import profile_command
from compute_client.commands.train import train_command


def register(app: typer.Typer) -> None:
    """Adds this room's commands to `app`."""
    app.command("train")(train_command)
    app.command("extract")(extract_command)
    app.command("profile")(profile_command)
    app.command("doctor")(doctor_command)
    app.add_typer(models_app, name="models")
