"""What commands print: people read standard error, programs read one JSON document on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def console(as_json: bool = False) -> Console:
    """Where a command shows tables and progress: standard output, or standard error when that is kept for JSON."""
    return Console(stderr=as_json, highlight=False)


def say(out: Console, text: str) -> None:
    """Prints one line as a whole, however narrow the terminal: it can be searched, copied and counted on."""
    out.print(text, soft_wrap=True)


def emit(document: dict[str, Any]) -> None:
    """Writes the one JSON document of a `--json` run; refuses NaN, which is not JSON."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()
