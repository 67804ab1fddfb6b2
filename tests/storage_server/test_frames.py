"""What encoding takes is known before it happens."""

from __future__ import annotations

import tracemalloc

import pyarrow as pa
import pytest
import torch
from awkward_models import Archive
from torch.profiler import ProfilerActivity

from profiler.memory import _allocations, _peak_of
from storage_server.extraction.frames import FrameWriter

LABELS = {0: 1}
FRAME = 256 * 1024
SLACK = 64 * 1024
"""Python's own objects, and Arrow's messages."""


def encoding_bytes(frames: FrameWriter) -> int:
    """The most that taking a frame allocates: tensors, Arrow's buffers and Python's, each at its own peak."""
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    try:
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            data, _ = frames.take()
        _, python = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return _peak_of(_allocations(record)) + python + max(0, pa.total_allocated_bytes() - arrow) + len(data)


@pytest.fixture(scope="module", autouse=True)
def _first_frame() -> None:
    """What the first profile and the first frame of a process import is no frame's own."""
    frames = FrameWriter(LABELS, None, "float32", "none", FRAME)
    frames.add_object(0, b"1")
    encoding_bytes(frames)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
@pytest.mark.parametrize("compression", ["none", "lz4", "packed"])
def test_a_frame_takes_no_more_than_it_is_charged(archive: Archive, codec: str, compression: str) -> None:
    found = archive.graph.cut("stem")
    frames = FrameWriter(LABELS, found, codec, compression, FRAME)
    row = tuple(torch.randn(shape).to(dtype) for shape, dtype in zip(found.shapes, found.dtypes, strict=True))
    while not frames.is_full:
        frames.add_features(0, row)
    assert FRAME < encoding_bytes(frames) <= frames.encode_bytes() + SLACK
    assert frames.encode_bytes() <= 32 * FRAME


def test_stored_objects_are_charged_by_the_largest() -> None:
    frames = FrameWriter(LABELS, None, "float32", "none", FRAME)
    frames.add_object(0, bytes(2 * FRAME))
    assert 2 * FRAME < encoding_bytes(frames) <= frames.encode_bytes(2 * FRAME) + SLACK
