"""A graph as one file, addressed by the SHA-256 of its bytes. Nothing in it can execute.

Layout (little endian): 8 bytes magic, u32 version, u32 zero, u64 document bytes, u64 weight bytes; a JSON document
(`document.py`) padded with spaces; a safetensors section (`tensors.py`). The same graph gives the same bytes.

The reader takes an archive for hostile until shown otherwise: sizes are bounded before anything is read, operations
come from a list, references lead backwards, shapes are walked on the meta device, weights are mapped and not copied.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hapi.errors import ArchiveError, DigestMismatchError
from hapi.files import draft
from hapi.model import document, tensors
from hapi.model.checks import ShapeError, ShapeLimits
from hapi.model.graph import Graph
from hapi.units import format_bytes

MAGIC = b"\x89HAPI\r\n\x1a"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQ")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What a reader is willing to take in, checked before memory is spent."""

    file_bytes: int = 32 * 2**30
    document_bytes: int = 8 * 2**20
    weight_header_bytes: int = 8 * 2**20
    nodes: int = 20_000
    weights: int = 20_000
    live_bytes_per_sample: int = 8 * 2**30
    """Peak bytes of tensors alive at a batch of one."""
    shapes: ShapeLimits = field(default_factory=ShapeLimits)


def _pieces(graph: Graph) -> Iterator[bytes | memoryview]:
    text = _document(graph)
    yield _HEADER.pack(MAGIC, VERSION, 0, len(text), tensors.section_bytes(graph.weights))
    yield text
    yield from tensors.chunks(graph.weights)


def archive_chunks(graph: Graph, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The archive in chunks to upload; one chunk at a time is in memory beside the weights themselves."""
    for piece in _pieces(graph):
        for start in range(0, len(piece), chunk_bytes):
            yield bytes(piece[start : start + chunk_bytes])


def archive_bytes(graph: Graph) -> int:
    """How many bytes the archive has."""
    return _HEADER.size + len(_document(graph)) + tensors.section_bytes(graph.weights)


def _document(graph: Graph) -> bytes:
    text = document.encode(graph)
    return text + b" " * (-(_HEADER.size + len(text)) % tensors.ALIGNMENT)


def digest_of(graph: Graph) -> str:
    """SHA-256 (hex) of the archive, computed without writing it."""
    digest = hashlib.sha256()
    for chunk in _pieces(graph):
        digest.update(chunk)
    return digest.hexdigest()


def save_archive(graph: Graph, path: str | os.PathLike[str]) -> str:
    """Writes the archive and returns its digest. The file appears complete or not at all."""
    target = Path(path)
    digest = hashlib.sha256()
    with draft(target.parent) as file:
        for chunk in _pieces(graph):
            file.write(chunk)
            digest.update(chunk)
        file.commit(target)
    return digest.hexdigest()


def load_archive(
    path: str | os.PathLike[str],
    *,
    expected_digest: str | None = None,
    limits: ArchiveLimits | None = None,
    called: str | None = None,
) -> Graph:
    """Reads an archive; its weights are mapped from the file, so several programs and processes share one copy.

    The file must stay as it is while the graph lives. Raises ArchiveError for anything that is not a well-formed
    archive within the limits, DigestMismatchError when the bytes are not those of `expected_digest`; they call the
    archive `called`, or by its path.
    """
    limits = limits or ArchiveLimits()
    called = called or f"archive {path}"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file_bytes:
                raise ArchiveError(
                    f"{called}: {format_bytes(size)}, over the limit of {format_bytes(limits.file_bytes)}."
                )
            document_bytes, weight_bytes = _read_header(called, file.read(_HEADER.size), size, limits)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if expected_digest is not None and digest != expected_digest.lower():
                raise DigestMismatchError(
                    f"{called}: its SHA-256 is {digest}, not {expected_digest}. "
                    "It is damaged or another model's; get it again."
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ArchiveError(f"{called}: cannot be read ({error.strerror or error}).") from error
    try:
        graph = _build(mapped, document_bytes, weight_bytes, limits)
    except (ArchiveError, ShapeError) as error:
        raise ArchiveError(f"{called}: {error}") from error
    graph.digest_is(digest)
    return graph


def _read_header(called: str, head: bytes, size: int, limits: ArchiveLimits) -> tuple[int, int]:
    if len(head) < _HEADER.size or head[: len(MAGIC)] != MAGIC:
        raise ArchiveError(f"{called}: not a HAPI archive. Write one with hapi.save_archive(graph, path).")
    _, version, reserved, document_bytes, weight_bytes = _HEADER.unpack(head)
    if version != VERSION or reserved:
        raise ArchiveError(f"{called}: version {version}; this release reads version {VERSION}.")
    if document_bytes > limits.document_bytes:
        raise ArchiveError(
            f"{called}: a graph document of {document_bytes} bytes, over the limit of {limits.document_bytes}."
        )
    if _HEADER.size + document_bytes + weight_bytes != size:
        raise ArchiveError(
            f"{called}: {size} bytes where its header says {_HEADER.size + document_bytes + weight_bytes}: "
            "truncated, or something was added."
        )
    return document_bytes, weight_bytes


def _build(mapped: mmap.mmap, document_bytes: int, weight_bytes: int, limits: ArchiveLimits) -> Graph:
    start = _HEADER.size + document_bytes
    weights = tensors.read(
        mapped, start, weight_bytes, max_header=limits.weight_header_bytes, max_weights=limits.weights
    )
    said = document.decode(mapped[_HEADER.size : start], weights, limits.nodes)
    graph = Graph(said.name, said.inputs, said.nodes, said.output, weights, said.orders, limits.shapes)
    if len(graph.nodes) != len(said.nodes) or len(graph.weights) != len(weights):
        raise ArchiveError("it holds nodes or weights that the output does not depend on.")
    if (live := graph.whole.peak_bytes(1)) > limits.live_bytes_per_sample:
        raise ArchiveError(
            f"it needs {format_bytes(live)} per sample, over the limit of {format_bytes(limits.live_bytes_per_sample)}."
        )
    return graph
