"""`hapi doctor`: is everything here that a job needs?"""

from __future__ import annotations

import typer
from rich.markup import escape

from compute_client.commands import options
from hapi.console import console, emit


def doctor_command(
    server: str | None = typer.Option(None, help="A storage server to try: reached, token known, link measured."),
    token: str | None = options.TOKEN,
    data: str | None = typer.Option(None, help="A dataset to try: by the server if one is given, and from here."),
    as_json: bool = options.JSON,
) -> None:
    """Check versions, devices, memory, the server with its token and link, and the way to the data."""
    from compute_client.doctor import examine

    out = console(as_json)
    with out.status("looking ..."):
        checks = examine(server, token, data)
    good = all(check.ok for check in checks)
    for check in checks:
        mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
        out.print(f"{mark} [bold]{escape(check.name)}[/]  {escape(check.said)}", soft_wrap=True)
    if as_json:
        emit({"ok": good, "checks": [{"name": c.name, "ok": c.ok, "said": c.said} for c in checks]})
    if not good:
        raise typer.Exit(1)
