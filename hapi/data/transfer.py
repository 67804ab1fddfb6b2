"""Copying objects between stores, and filling a store with synthetic pictures: several at a time, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from hapi.data.stores import ObjectInfo, ObjectStore
from hapi.data.synth import DEFAULT_SIZE, check_arguments, synth_image, synth_key
from hapi.errors import ObjectNotFoundError

DEFAULT_WORKERS = 8
_MD5 = re.compile(r"[0-9a-f]{32}")

Item = TypeVar("Item")
Progress = Callable[[int], None]
"""Told, per object done, how many bytes it has."""


@dataclass(frozen=True)
class Transfer:
    """What was done. `bytes` are those of the objects that were sent."""

    sent: int
    skipped: int
    bytes: int


def copy_objects(
    source: ObjectStore,
    target: ObjectStore,
    *,
    overwrite: bool = False,
    workers: int = DEFAULT_WORKERS,
    progress: Progress | None = None,
) -> Transfer:
    """Copies every object of `source` to the same key in `target`.

    An object that is there already, byte for byte, is skipped, unless `overwrite`; so an interrupted copy is continued
    by doing it again. Raises what the stores raise, for the first object that fails.
    """
    there = {} if overwrite else {found.key: found for found in _listing(target)}

    def copy(item: ObjectInfo) -> tuple[int, bool]:
        data = source.get(item.key)
        if _is_same(target, there.get(item.key), data):
            return len(data), False
        target.put(item.key, data)
        return len(data), True

    objects = (item for item in source.list() if not item.is_folder)
    return _run(copy, objects, workers, progress)


def put_pictures(
    target: ObjectStore,
    images: int,
    *,
    classes: int = 5,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    workers: int = DEFAULT_WORKERS,
    progress: Progress | None = None,
) -> Transfer:
    """Writes `images` synthetic pictures, a folder per class; the same ones for the same seed."""
    check_arguments(classes, size)

    def make(index: int) -> tuple[int, bool]:
        name, data = synth_image(index, classes, seed, size)
        target.put(synth_key(index, name), data)
        return len(data), True

    return _run(make, range(images), workers, progress)


def _listing(store: ObjectStore) -> Iterator[ObjectInfo]:
    try:
        yield from store.list()
    except ObjectNotFoundError:  # nothing is there yet
        return


def _is_same(target: ObjectStore, found: ObjectInfo | None, data: bytes) -> bool:
    if found is None or found.size != len(data):
        return False
    if _MD5.fullmatch(found.version):  # what S3 gives for objects that were put in one piece
        return found.version == hashlib.md5(data, usedforsecurity=False).hexdigest()
    return target.get(found.key) == data


def _run(
    work: Callable[[Item], tuple[int, bool]], items: Iterable[Item], workers: int, progress: Progress | None
) -> Transfer:
    """Does `work` for each item, no more than two per worker begun at a time; the first error ends it."""
    sent = skipped = total = 0
    stop = threading.Event()

    def guarded(item: Item) -> tuple[int, bool]:
        return (0, False) if stop.is_set() else work(item)

    pending: set[Future[tuple[int, bool]]] = set()
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="transfer") as pool:
        try:
            while True:
                free = 2 * workers - len(pending)
                pending.update(pool.submit(guarded, item) for item in itertools.islice(remaining, free))
                if not pending:
                    break
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    length, was_sent = future.result()
                    sent, skipped, total = sent + was_sent, skipped + (not was_sent), total + length * was_sent
                    if progress is not None:
                        progress(length)
        finally:
            stop.set()
    return Transfer(sent, skipped, total)
