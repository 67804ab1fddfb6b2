"""What a server says of its work arrives beside the features, and nobody has to know it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hapi.errors import WireError
from hapi.wire import FeatureBatch, StreamEncoder, read_stream
from hapi.wire.work import KEY, MOST_CHARACTERS, Work

PART = st.floats(0, 1)
WORKS = st.builds(Work, st.integers(0, 10**6), st.floats(0, 1e6), st.floats(0, 1e6), PART)
GOOD = asdict(Work(3, 0.5, 1.0, 0.25))


def batch_with(work: Work | None, rows: int = 2) -> FeatureBatch:
    return FeatureBatch(np.arange(rows), np.zeros(rows, np.int64), (torch.ones(rows, 3),), work=work)


def stream(*works: Work | None, compression: str = "none", rows: int = 2, message_bytes: int = 2**20) -> bytes:
    encoder = StreamEncoder(((3,),), (torch.float32,), compression=compression, message_bytes=message_bytes)
    return encoder.header() + b"".join(encoder.encode(batch_with(work, rows)) for work in works) + encoder.end()


@given(st.lists(st.none() | WORKS, max_size=3), st.sampled_from(["none", "lz4", "packed"]))
def test_it_comes_with_its_message(works: list[Work | None], compression: str) -> None:
    data = stream(*works, compression=compression)
    assert [batch.work for batch in read_stream([data])] == works
    for batch in pa.ipc.open_stream(data):  # any Arrow reader passes over it
        assert batch.num_rows == 2


def test_a_batch_in_several_messages_tells_it_once() -> None:
    work = Work(8, 1.0, 2.0, 0.5)
    found = [batch.work for batch in read_stream([stream(work, rows=8, message_bytes=128)])]
    assert len(found) > 1
    assert found == [work, *[None] * (len(found) - 1)]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "nonsense",
        "[" * 2000,
        " " * (MOST_CHARACTERS + 1),
        json.dumps({**GOOD, "share": 1.5}),
        json.dumps({**GOOD, "seconds": -1}),
        json.dumps({**GOOD, "seconds": float("nan")}),
        json.dumps({**GOOD, "samples": True}),
        json.dumps({name: value for name, value in GOOD.items() if name != "elapsed"}),
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(WireError, match=r"hapi\.work"):
        Work.of({KEY: text.encode()})


def test_what_a_newer_server_adds_is_passed_over() -> None:
    assert Work.of({KEY: json.dumps({**GOOD, "watts": 3}).encode(), b"other": b"x"}) == Work(**GOOD)
    assert Work.of({b"other": b"x"}) is None


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_damaged_metadata_is_a_wire_error_or_harmless(position: int, damage: bytes) -> None:
    encoder = StreamEncoder(((3,),), (torch.float32,))
    header, message = encoder.header(), bytearray(encoder.encode(batch_with(Work(3, 0.5, 1.0, 0.25))))
    at = min(8 + position, len(message) - len(damage))
    message[at : at + len(damage)] = damage
    try:
        list(read_stream([header + bytes(message) + encoder.end()]))
    except WireError:
        return
