"""What commands print: people read standard error, programs read one JSON document on standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console


def console(as_json: bool = False) -> Console:
    """Where a command shows tables and progress: standard output, or standard error when that is kept for JSON."""
    return Console(stderr=as_json, highlight=False)


def say(out: Console, text: str) -> None:
    """Prints one line as a whole, however narrow the terminal: it can be searched, copied and counted on."""
    out.print(text, soft_wrap=True)


def emit(document: Mapping[str, Any]) -> None:
    """Writes the one JSON document of a `--json` run; see `finite`."""
    sys.stdout.write(json.dumps(finite(document), allow_nan=False) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """A value for JSON: numbers that it does not have, as the loss of a training that diverged, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
