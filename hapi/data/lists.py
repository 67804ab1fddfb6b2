"""A manifest from a list of files with labels: CSV, JSON lines or Parquet, stored beside (or above) the files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hapi.data.manifest import MAX_CLASSES, Manifest, table_of
from hapi.data.stores import ObjectStore
from hapi.data.stores.base import check_key
from hapi.errors import AccessDeniedError, HapiError, ManifestError

LIST_EXTENSIONS = (".csv", ".jsonl", ".parquet")
MAX_LIST_BYTES = 1 << 30

_KEY_COLUMNS = ("path", "key")
_LABEL_COLUMN = "label"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Row(NamedTuple):
    line: int
    key: Any
    label: Any


def list_manifest(store: ObjectStore, key: str) -> Manifest:
    """The samples that the list `key` names, in its order.

    Columns: `path` (or `key`), relative to the store's root, and optionally `label`; others are ignored. Labels that
    are all whole numbers are used as they are; others are names, numbered in sorted order, but not if all are numbers:
    10.0 would come before 2.0. A ManifestError tells the line.
    """
    where = f"{store.uri}/{key}"
    size = store.info(key).size
    if size > MAX_LIST_BYTES:
        raise ManifestError(f"{where}: a list of {size} bytes, at most {MAX_LIST_BYTES} are read. Split the dataset.")
    data = store.get(key)
    lines, keys, labels = _columns(where, store.uri, _rows(data, key, where))
    lengths, versions = _look_up(store, where, lines, keys)
    if all(label is None for label in labels):
        return Manifest(store.uri, (), table_of(keys, lengths, versions))
    if None in labels:
        raise ManifestError(f"{where}, line {lines[labels.index(None)]}: no label. Label all samples, or none.")
    classes, numbers = _classes(where, lines, labels)
    return Manifest(store.uri, classes, table_of(keys, lengths, versions, numbers))


def _rows(data: bytes, key: str, where: str) -> Iterator[_Row]:
    kind = os.path.splitext(key)[1].lower()
    if kind == ".parquet":
        return _parquet_rows(data, where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: not UTF-8 text ({error}). Save the list as UTF-8.") from error
    return _csv_rows(text, where) if kind == ".csv" else _json_rows(text, where)


def _csv_rows(text: str, where: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        place, label = _places(head, where)
        for row in reader:
            if not row:
                continue
            if len(row) != len(head):
                raise ManifestError(f"{where}, line {reader.line_num}: {len(row)} columns, the head has {len(head)}.")
            yield _Row(reader.line_num, row[place], None if label is None else row[label] or None)
    except csv.Error as error:
        raise ManifestError(f"{where}, line {reader.line_num}: not CSV ({error}).") from error


def _json_rows(text: str, where: str) -> Iterator[_Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where}, line {line}: not JSON ({error}). Write one object per line.") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{where}, line {line}: not a JSON object. Write one object per line.")
        name = next((name for name in _KEY_COLUMNS if name in row), None)
        if name is None:
            raise ManifestError(f"{where}, line {line}: no 'path'. Name the file relative to the dataset's root.")
        yield _Row(line, row[name], row.get(_LABEL_COLUMN))


def _parquet_rows(data: bytes, where: str) -> Iterator[_Row]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        place, label = _places(file.schema_arrow.names, where)
        names = [file.schema_arrow.names[column] for column in (place, label) if column is not None]
        line = 0
        for batch in file.iter_batches(columns=names):
            keys = batch[names[0]].to_pylist()
            labels = batch[names[1]].to_pylist() if label is not None else [None] * len(keys)
            for key, value in zip(keys, labels, strict=True):
                line += 1
                yield _Row(line, key, value)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{where}: not a readable Parquet file ({error}).") from error


def _places(head: list[str], where: str) -> tuple[int, int | None]:
    """Which column holds the path, and which the label."""
    name = next((name for name in _KEY_COLUMNS if name in head), None)
    if name is None:
        raise ManifestError(
            f"{where}, line 1: no column 'path' (found: {', '.join(head) or 'nothing'}). "
            "Give the list a head with the columns path and label."
        )
    return head.index(name), head.index(_LABEL_COLUMN) if _LABEL_COLUMN in head else None


def _columns(where: str, root: str, rows: Iterator[_Row]) -> tuple[list[int], list[str], list[Any]]:
    lines: list[int] = []
    keys: list[str] = []
    labels: list[Any] = []
    seen: set[str] = set()
    for line, key, label in rows:
        if not isinstance(key, str) or not key.strip():
            raise ManifestError(f"{where}, line {line}: the path is empty or not text.")
        key = _relative(key, root)
        try:
            check_key(key, root)
        except AccessDeniedError as error:
            raise ManifestError(f"{where}, line {line}: {error}") from error
        if key in seen:
            raise ManifestError(f"{where}, line {line}: {key!r} is listed twice. Remove one of the lines.")
        seen.add(key)
        lines.append(line)
        keys.append(key)
        labels.append(label)
    if not keys:
        raise ManifestError(f"{where}: no samples. Give the list at least one line below its head.")
    return lines, keys, labels


def _relative(key: str, root: str) -> str:
    """A path as lists have it, as in ./a.jpg or whole below the root, without what is no part of the key."""
    folder = unquote(root.removeprefix("file://")) if root.startswith("file://") else root
    for start in (root, folder):
        key = key.removeprefix(start.rstrip("/") + "/")
    while key.startswith("./"):
        key = key.removeprefix("./")
    return key


def _look_up(store: ObjectStore, where: str, lines: list[int], keys: list[str]) -> tuple[np.ndarray, pa.Array]:
    """Sizes and versions of the listed keys, from one listing of the folder that holds them all."""
    common = _common_prefix(min(keys), max(keys))
    wanted = {key: place for place, key in enumerate(keys)}
    lengths = np.full(len(keys), -1, np.int64)
    versions = [""] * len(keys)
    try:
        for found in store.list(common[: common.rfind("/") + 1]):
            place = wanted.get(found.key)
            if place is not None:
                lengths[place], versions[place] = found.size, found.version
    except HapiError as error:
        raise type(error)(f"{where}: {error}") from error
    missing = np.flatnonzero(lengths < 0)
    if len(missing):
        first = int(missing[0])
        raise ManifestError(
            f"{where}, line {lines[first]}: {keys[first]!r} is not in {store.uri}"
            + (f" (and {len(missing) - 1} more are missing)." if len(missing) > 1 else ".")
            + " Paths are relative to the folder of the list."
        )
    return lengths, pa.array(versions, pa.large_string())


def _common_prefix(low: str, high: str) -> str:
    """What the first and the last of sorted strings, and so all of them, begin with."""
    length = next((place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length]


def _classes(where: str, lines: list[int], labels: list[Any]) -> tuple[list[str], np.ndarray]:
    """Class names, and per sample the number of its class."""
    for line, label in zip(lines, labels, strict=True):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise ManifestError(f"{where}, line {line}: label {label!r} is neither a name nor a whole number.")
    if all(isinstance(label, int) or (label.isascii() and label.isdigit()) for label in labels):
        if any(len(str(label)) > len(str(MAX_CLASSES)) for label in labels):
            raise ManifestError(f"{where}: a label is over {MAX_CLASSES}. Number the classes from 0.")
        numbers = np.array([int(label) for label in labels], np.int64)
        if numbers.min() < 0 or numbers.max() >= MAX_CLASSES:
            bad = int(np.flatnonzero((numbers < 0) | (numbers >= MAX_CLASSES))[0])
            raise ManifestError(f"{where}, line {lines[bad]}: label {numbers[bad]}. Number the classes from 0.")
        return [str(number) for number in range(int(numbers.max()) + 1)], numbers
    names = [str(label) for label in labels]
    if all(_NUMBER.fullmatch(name) for name in names):
        bad = next(place for place, name in enumerate(names) if not (name.isascii() and name.isdigit()))
        raise ManifestError(
            f"{where}, line {lines[bad]}: label {names[bad]} is not the number of a class. Number the classes 0, 1, 2 "
            "and so on, or name them."
        )
    classes = sorted(set(names))
    number = {name: place for place, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], np.int64)
