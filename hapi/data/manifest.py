"""The ordered, versioned list of samples. Columns, not objects: a million samples take some 150 MB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hapi.data.stores import ObjectStore
from hapi.errors import ManifestError

FORMAT = "hapi.manifest/1"
MAX_SAMPLES = 200_000_000
MAX_CLASSES = 1_000_000
SCHEMA = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("version", pa.large_string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Where one sample's bytes lie: `length` bytes from `offset` in the object `key`."""

    key: str
    offset: int
    length: int
    label: int | None
    version: str


class Manifest:
    """The samples below one root, in order. Immutable; equal content has an equal `digest`, on any machine.

    `uri` is the root that keys are relative to. `classes` names the labels 0, 1, ...; it is empty without labels.
    """

    def __init__(self, uri: str, classes: Iterable[str], table: pa.Table) -> None:
        """`table` has the columns of SCHEMA; ManifestError if it is empty or says something impossible."""
        self.uri = uri
        self.classes = tuple(classes)
        self._table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        self._check()

    def __len__(self) -> int:
        return self._table.num_rows

    def __repr__(self) -> str:
        return f"Manifest({self.uri!r}, {len(self)} samples, {len(self.classes)} classes, digest {self.digest[:12]})"

    def sample(self, index: int) -> Sample:
        """The sample at `index`, 0 to len - 1; IndexError outside of that."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index}: {self.uri} has {len(self)} samples")
        return Sample(*(column[index].as_py() for column in self._table.columns))

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """The samples at `indices`, faster than one by one; IndexError outside of 0 to len - 1."""
        if indices and not (min(indices) >= 0 and max(indices) < len(self)):
            raise IndexError(f"samples {min(indices)} to {max(indices)}: {self.uri} has {len(self)} samples")
        chosen = self._table.take(pa.array(indices, pa.int64()))
        return [Sample(*row) for row in zip(*(column.to_pylist() for column in chosen.columns), strict=True)]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Per sample its class, int64 of shape (len,); None if the dataset has no labels."""
        return self._numbers("label") if self.classes else None

    @cached_property
    def total_bytes(self) -> int:
        return int(self._numbers("length").sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over root, classes, and every column: what the features of a sample are kept under.

        The root counts, so that features of two stores with equal names and versions are never mixed. The hash is over
        canonical bytes (lengths and UTF-8 of strings, little-endian int64), not over a file format.
        """
        hasher = hashlib.sha256(FORMAT.encode())
        hasher.update(json.dumps([self.uri, self.classes, len(self)], ensure_ascii=True).encode())
        for name in SCHEMA.names:
            if pa.types.is_integer(SCHEMA.field(name).type):
                hasher.update(self._numbers(name).astype("<i8", copy=False).data)
                continue
            for chunk in self._table[name].chunks:
                hasher.update(pc.binary_length(chunk).to_numpy(zero_copy_only=False).astype("<i8").data)
                hasher.update(_string_bytes(chunk))
        return hasher.hexdigest()

    @cached_property
    def order_digest(self) -> str:
        """SHA-256 over `key NUL offset NUL label NUL newline` per sample: which samples there are, and their order.

        Equal for a folder and its copy in a bucket: neither the root nor sizes and versions count. A loader's state
        may be resumed on any manifest with the same order digest.
        """
        hasher = hashlib.sha256()
        for batch in self._table.to_batches(max_chunksize=1 << 16):
            columns = [batch["key"], pc.cast(batch["offset"], pa.large_string())]
            columns.append(pc.fill_null(pc.cast(batch["label"], pa.large_string()), "-"))
            columns.append(pa.repeat(pa.scalar("\n", pa.large_string()), len(batch)))
            hasher.update(_string_bytes(pc.binary_join_element_wise(*columns, pa.scalar("\0", pa.large_string()))))
        return hasher.hexdigest()

    def to_bytes(self) -> bytes:
        """An Arrow IPC stream of the samples; its schema metadata holds the format, root and classes."""
        document = json.dumps({"uri": self.uri, "classes": self.classes}, ensure_ascii=True)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA.with_metadata({FORMAT: document})) as writer:
            for batch in self._table.to_batches(max_chunksize=1 << 20):
                writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote; ManifestError for anything else."""
        try:
            with pa.ipc.open_stream(data) as reader:
                if not reader.schema.equals(SCHEMA) or list(reader.schema.metadata or ()) != [FORMAT.encode()]:
                    raise ManifestError(f"manifest: not the columns of {FORMAT}. List the dataset again.")
                head = json.loads(reader.schema.metadata[FORMAT.encode()])
                batches = []
                for batch in reader:
                    batch.validate(full=True)
                    batches.append(batch)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"manifest: damaged ({error}). List the dataset again.") from error
        if not isinstance(head, dict) or head.keys() != {"uri", "classes"} or not _all_text([head["uri"]]):
            raise ManifestError("manifest: its head names no root and classes. List the dataset again.")
        if not isinstance(head["classes"], list) or not _all_text(head["classes"]):
            raise ManifestError("manifest: its classes are not a list of names. List the dataset again.")
        return cls(head["uri"], head["classes"], pa.Table.from_batches(batches, SCHEMA))

    def _numbers(self, name: str) -> np.ndarray:
        column = self._table[name]
        if column.null_count:
            column = pc.fill_null(column, -1)
        return column.to_numpy()

    def _check(self) -> None:
        """Everything a reader may rely on; also for manifests that came over a network."""
        if not len(self):
            raise ManifestError(f"{self.uri}: no samples. Give a folder with images, or a list with rows.")
        if len(self) > MAX_SAMPLES or len(self.classes) > MAX_CLASSES:
            raise ManifestError(
                f"{self.uri}: {len(self)} samples in {len(self.classes)} classes, "
                f"more than {MAX_SAMPLES} and {MAX_CLASSES}. Split the dataset."
            )
        if any(self._table[field.name].null_count for field in SCHEMA if not field.nullable):
            raise ManifestError(f"{self.uri}: a sample without key, offset, length or version. List the dataset again.")
        unlabelled = self._table["label"].null_count
        if unlabelled != (0 if self.classes else len(self)):
            raise ManifestError(
                f"{self.uri}: {unlabelled} of {len(self)} samples have no label, and there are {len(self.classes)} "
                "classes. Label all samples, or none."
            )
        if self.labels is not None and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise ManifestError(f"{self.uri}: a label outside of the {len(self.classes)} classes.")
        if self._numbers("offset").min() < 0 or self._numbers("length").min() < 0:
            raise ManifestError(f"{self.uri}: a negative offset or length.")
        keys = self._table["key"]
        bad = pc.match_substring_regex(keys, r"(?s)^$|^/|\x00|(^|/)\.\.?(/|$)")
        if pc.any(bad).as_py():
            raise ManifestError(f"{self.uri}: key {keys.filter(bad)[0].as_py()!r} does not stay below the root.")


def table_of(
    keys: Any, lengths: Any, versions: Any, labels: Any | None = None, offsets: Sequence[int] | None = None
) -> pa.Table:
    """The columns of a manifest from whole objects: arrays or lists of equal length."""
    count = len(keys)
    columns = [
        keys,
        np.zeros(count, np.int64) if offsets is None else offsets,
        lengths,
        pa.nulls(count, pa.int64()) if labels is None else labels,
        versions,
    ]
    arrays = [
        column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, field.type)
        for column, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.table(dict(zip(SCHEMA.names, arrays, strict=True))).cast(SCHEMA)


def read_sample(store: ObjectStore, sample: Sample) -> bytes:
    """The stored bytes of one sample; the errors of ObjectStore.get."""
    return store.get(sample.key, sample.offset, sample.length)


def _string_bytes(array: pa.Array) -> memoryview:
    """The concatenated UTF-8 of a string array, without a copy."""
    offsets = np.frombuffer(array.buffers()[1], np.int64, array.offset + len(array) + 1)[array.offset :]
    data = array.buffers()[2]
    return memoryview(data)[int(offsets[0]) : int(offsets[-1])] if data is not None else memoryview(b"")


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
