"""Features into a Parquet file: streamed, a row group at a time, whole or absent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compute_client.files import whole_file
from compute_client.loader import DataLoader

ROW_GROUP_BYTES = 32 * 2**20
NO_LABEL = -1


def write_features(
    loader: DataLoader, path: str | os.PathLike[str], *, done: Callable[[int], None] = lambda samples: None
) -> int:
    """Writes what `loader` yields in one epoch, which must be in order and unbatched; the number of rows.

    Columns: `index` int64; `key` string, the path below the dataset's root; `label` int64 and `class` string, null
    without labels; `features` a list of float32 of fixed length. The file's metadata holds model, data and the shape of
    the features. Memory is bounded by a row group. `done` is told the number of rows so far.
    """
    shape = loader.feature_shape
    size = math.prod(shape)
    metadata = {
        "hapi.model": loader.model,
        "hapi.data": loader.dataset.uri,
        "hapi.shape": ",".join(map(str, shape)),
        "hapi.classes": "\n".join(loader.classes),
    }
    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int64()),
            pa.field("class", pa.string()),
            pa.field("features", pa.list_(pa.float32(), size), nullable=False),
        ],
        metadata,
    )
    group = max(1, ROW_GROUP_BYTES // (4 * size))
    written = 0
    with whole_file(Path(path)) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for rows in _groups(loader, group):
            writer.write_batch(_record(loader, rows, schema, size))
            written += len(rows)
            done(written)
    return written


def _groups(loader: DataLoader, size: int) -> Iterator[list[tuple[int, np.ndarray, int]]]:
    """(index, features, label) of `size` samples at a time."""
    rows: list[tuple[int, np.ndarray, int]] = []
    for index, features, label in numbered(loader):
        rows.append((index, features, label))
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def numbered(loader: DataLoader) -> Iterator[tuple[int, np.ndarray, int]]:
    """(index, features as a flat float32 array, label) of every sample that could be read, in order."""
    for indices, features, labels in loader.indexed():
        flat = features.reshape(len(labels), -1).float().cpu().numpy()
        yield from zip(indices, flat, labels.tolist(), strict=True)


def _record(
    loader: DataLoader, rows: list[tuple[int, np.ndarray, int]], schema: pa.Schema, size: int
) -> pa.RecordBatch:
    listing, classes = loader.dataset.listing, loader.classes
    labels: list[int | None] = [None if label == NO_LABEL else label for _, _, label in rows]
    columns: list[Any] = [
        pa.array([index for index, _, _ in rows], pa.int64()),
        pa.array([listing.sample(index).key for index, _, _ in rows], pa.string()),
        pa.array(labels, pa.int64()),
        pa.array([None if label is None else classes[label] for label in labels], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([values for _, values, _ in rows])), size),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
