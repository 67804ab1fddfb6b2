"""Files that a user asked for: checked before the work, whole or absent after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hapi.errors import HapiError, InputError
from hapi.files import draft


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to. When the block ends well, it takes the target's name; else it is removed."""
    check_target(target)
    try:
        with draft(target.parent) as unfinished:
            yield unfinished.path
            unfinished.commit(target)
    except HapiError:  # what went wrong with the content; one is an OSError too, as it says that time ran out
        raise
    except OSError as error:
        raise HapiError(f"{target}: cannot be written ({error.strerror or error}).") from error


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
