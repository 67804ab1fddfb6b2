"""Writing files so that they are whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hapi.errors import HapiError, InputError


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to. When the block ends well, it takes the target's name; else it is removed."""
    check_target(target)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        yield unfinished
        os.replace(unfinished, target)
    except OSError as error:
        raise HapiError(f"{target}: cannot be written ({error.strerror or error}).") from error
    finally:
        unfinished.unlink(missing_ok=True)


def check_target(target: Path) -> None:
    """InputError, before any work, if `target` cannot be a new file."""
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: its folder does not exist. Create it first.")
    if target.is_dir():
        raise InputError(f"{target}: is a folder. Name a file.")


def write_whole(target: Path, data: bytes) -> None:
    """Writes a file, or leaves what was there."""
    with whole_file(target) as unfinished:
        unfinished.write_bytes(data)
