"""The photographs that a benchmark uses: somebody's own, or synthetic ones of about 100 kB."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hapi.errors import InputError
from hapi.machine import processors

CLASSES = 5


@contextlib.contextmanager
def photographs(data: str | None, samples: int, *, seed: int = 0) -> Iterator[Path]:
    """A folder per class with at most `samples` photographs, for as long as the context lasts.

    Of a folder `data` every class gives its part, evenly from its sorted files (linked, where the file system can).
    Raises InputError for a folder without photographs.
    """
    with tempfile.TemporaryDirectory(prefix="hapi-photographs-") as folder:
        target = Path(folder)
        if data is None:
            from hapi.data import open_store
            from hapi.data.transfer import put_pictures

            put_pictures(open_store(target), samples, classes=CLASSES, seed=seed, workers=processors())
        else:
            for number, path in enumerate(choose(Path(data.removeprefix("file://")), samples)):
                place = target / path.parent.name / f"{number:06d}{path.suffix.lower()}"
                place.parent.mkdir(exist_ok=True)
                _put(path, place)
        yield target


@contextlib.contextmanager
def enough(folder: Path, samples: int) -> Iterator[Path]:
    """As `photographs` of that folder; where it has fewer, all come, again and again under further names."""
    with photographs(str(folder), samples) as chosen:
        if count(chosen) >= samples:
            yield chosen
            return
        with multiplied(chosen, samples) as more:
            yield more


def count(folder: Path) -> int:
    """How many photographs there are in `folder`."""
    return sum(1 for _ in folder.glob("*/*"))


def choose(folder: Path, samples: int) -> list[Path]:
    """Up to `samples` photographs below the class folders of `folder`, evenly from each class; sorted."""
    from hapi.data.folder import IMAGE_EXTENSIONS

    by_class: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in IMAGE_EXTENSIONS:
            by_class.setdefault(path.parent.name, []).append(path)
    if not by_class:
        raise InputError(f"--data {folder}: no photographs in folders per class. Leave it out for synthetic ones.")
    total = sum(map(len, by_class.values()))
    wanted = min(samples, total)
    chosen: list[Path] = []
    seen = 0
    for paths in by_class.values():  # cumulative shares, so that the parts sum to what is wanted
        begin, seen = seen, seen + len(paths)
        chosen += evenly(paths, seen * wanted // total - begin * wanted // total)
    return chosen


def evenly(items: Sequence[Path], count: int) -> list[Path]:
    """`count` of the items, evenly spaced."""
    return [items[place * len(items) // count] for place in range(count)]


def mean_bytes(folder: Path) -> float:
    """Mean size of the photographs of `folder`, in bytes."""
    sizes = [path.stat().st_size for path in folder.glob("*/*")]
    return sum(sizes) / len(sizes)


def _put(path: Path, place: Path) -> None:
    try:
        place.hardlink_to(path.resolve())
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, place)


@contextlib.contextmanager
def multiplied(folder: Path, samples: int) -> Iterator[Path]:
    """A folder with `samples` files, each a link to (or a copy of) one of the photographs of `folder`, in turn."""
    pictures = sorted(folder.glob("*/*"))
    with tempfile.TemporaryDirectory(prefix="hapi-photographs-", dir=folder.parent) as name:
        for number in range(samples):
            path = pictures[number % len(pictures)]
            place = Path(name) / path.parent.name / f"{number:06d}{path.suffix}"
            place.parent.mkdir(exist_ok=True)
            _put(path, place)
        yield Path(name)
