"""Feature streams: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import io
import struct

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi.errors import InputError, TruncatedStreamError, WireError
from hapi.wire import FeatureBatch, StreamDecoder, StreamEncoder, StreamLimits, read_stream
from hapi.wire.framing import CONTINUATION, END_OF_STREAM
from hapi.wire.protocol import MAX_SPAN

SHAPES = ((2, 3), (4,))
DTYPES = (torch.float32, torch.int64)


def feature_batch(rows: int, seed: int = 0) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    return FeatureBatch(
        indices=np.arange(rows) + 100 * seed,
        labels=np.array([-1 if row % 3 == 1 else row for row in range(rows)], dtype=np.int64),
        tensors=(
            torch.randn(rows, 2, 3, generator=generator),
            torch.randint(-9, 9, (rows, 4), generator=generator),
        ),
        errors={row: f"sample {row}: not an image" for row in range(rows) if row == 2},
    )


def write(batches: list[FeatureBatch], end: bool = True, **settings: object) -> bytes:
    encoder = StreamEncoder(SHAPES, DTYPES, **settings)  # type: ignore[arg-type]
    return encoder.header() + b"".join(map(encoder.encode, batches)) + (encoder.end() if end else b"")


def chunked(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def assert_same(got: FeatureBatch, wanted: FeatureBatch) -> None:
    assert np.array_equal(got.indices, wanted.indices)
    assert np.array_equal(got.labels, wanted.labels)
    assert got.errors == wanted.errors
    assert got.objects == wanted.objects
    assert len(got.tensors) == len(wanted.tensors)
    for mine, theirs in zip(got.tensors, wanted.tensors, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd", "packed"])
@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_what_is_written_is_read_whatever_the_chunks(compression: str, size: int) -> None:
    batches = [feature_batch(5), feature_batch(1, seed=1), feature_batch(64, seed=2)]
    got = list(read_stream(chunked(write(batches, compression=compression), size)))
    for mine, theirs in zip(got, batches, strict=True):
        assert_same(mine, theirs)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 20), max_size=4), cuts=st.lists(st.integers(1, 900), min_size=1, max_size=9))
def test_any_division_into_chunks_gives_the_same_samples(rows: list[int], cuts: list[int]) -> None:
    batches = [feature_batch(count, seed) for seed, count in enumerate(rows)]
    data, chunks, position = write(batches), [], 0
    while position < len(data):
        chunks.append(data[position : position + cuts[len(chunks) % len(cuts)]])
        position += len(chunks[-1])
    got = list(read_stream(chunks))
    for mine, theirs in zip(got, [batch for batch in batches if len(batch)], strict=True):
        assert_same(mine, theirs)


def test_any_arrow_reader_reads_it() -> None:
    batch = feature_batch(5)
    reader = pa.ipc.open_stream(io.BytesIO(write([batch], codec="float16", compression="zstd")))
    table = reader.read_all()
    assert table.column_names == ["index", "label", "features", "features_1", "error"]
    assert reader.schema.metadata == {b"hapi.protocol": b"1", b"hapi.codec": b"float16", b"hapi.cut": b"output"}
    features = table["features"].combine_chunks().to_numpy_ndarray()
    assert features.shape == (5, 2, 3)
    assert np.array_equal(features, batch.tensors[0].half().numpy())
    assert table["label"].to_pylist() == [0, None, 2, 3, None]
    assert table["error"].to_pylist() == [None, None, "sample 2: not an image", None, None]


def test_stored_objects_travel_as_they_are() -> None:
    objects = [b"", b"\x00\xff", b"jpeg" * 1000]
    encoder = StreamEncoder(cut="input", compression="zstd")
    batch = FeatureBatch(np.arange(3), np.array([0, -1, 2]), objects=objects, errors={0: "gone"})
    data = encoder.header() + encoder.encode(batch) + encoder.end()
    assert b"jpeg" * 1000 in data
    (got,) = read_stream([data])
    assert_same(got, batch)


def test_the_header_is_known_before_the_first_batch() -> None:
    decoder = StreamDecoder()
    encoder = StreamEncoder(((3,),), (torch.float32,), "bfloat16", cut="layer3.1")
    assert list(decoder.feed(encoder.header())) == []
    assert decoder.header is not None
    assert (decoder.header.cut, decoder.header.codec) == ("layer3.1", "bfloat16")
    assert decoder.header.columns[0].stored == torch.bfloat16


@pytest.mark.parametrize("compression", ["none", "lz4", "packed"])
def test_decoded_tensors_may_be_written_to_and_outlive_the_reader(compression: str) -> None:
    # pytest turns torch's warning about read-only memory into an error, so this also shows that there is none
    got = list(read_stream([write([feature_batch(3), feature_batch(3, seed=1)], compression=compression)]))
    before = got[1].tensors[0].clone()
    got[0].tensors[0].add_(1)
    got[0].labels[0] = 7
    assert torch.equal(got[1].tensors[0], before)
    assert torch.equal(got[0].tensors[0], feature_batch(3).tensors[0] + 1)


def test_large_batches_are_divided_into_messages() -> None:
    batch = feature_batch(100)
    got = list(read_stream([write([batch], message_bytes=1000)]))
    assert len(got) > 3
    assert np.array_equal(np.concatenate([part.indices for part in got]), batch.indices)
    assert torch.equal(torch.cat([part.tensors[0] for part in got]), batch.tensors[0])
    assert [part.indices[row] for part in got for row in part.errors] == [2]


def test_every_truncation_is_noticed_after_the_complete_batches() -> None:
    whole = write([feature_batch(4), feature_batch(4, seed=1)])
    first = len(write([feature_batch(4)], end=False))
    second = len(write([feature_batch(4), feature_batch(4, seed=1)], end=False))
    for length in range(0, len(whole), 13):
        got: list[FeatureBatch] = []
        with pytest.raises(TruncatedStreamError, match="end marker"):
            got.extend(read_stream([whole[:length]]))
        assert len(got) == (length >= first) + (length >= second)
    with pytest.raises(TruncatedStreamError):
        list(read_stream([whole[: -len(END_OF_STREAM)]]))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 2500), value=st.integers(0, 255), compression=st.sampled_from(["none", "lz4", "packed"]))
def test_a_damaged_byte_never_does_worse_than_a_wire_error(position: int, value: int, compression: str) -> None:
    data = bytearray(write([feature_batch(6), feature_batch(2, seed=1)], compression=compression))
    data[position % len(data)] = value
    try:
        rows = sum(len(batch) for batch in read_stream([bytes(data)], limits=StreamLimits(body_bytes=2**16)))
    except WireError:
        return
    assert rows == 8


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html><body>502 Bad Gateway</body></html>",
        b"\x80\x04\x95pickle..........",
        CONTINUATION + struct.pack("<i", -8),
        CONTINUATION + struct.pack("<i", 2**30),
        CONTINUATION + struct.pack("<i", 24) + bytes(24),
        CONTINUATION + struct.pack("<i", 24) + b"\xff" * 24,
        b"\0" * 64,
    ],
)
def test_garbage_is_refused_at_once(garbage: bytes) -> None:
    with pytest.raises(WireError, match="feature stream") as caught:
        list(read_stream([garbage]))
    assert not isinstance(caught.value, TruncatedStreamError)


@pytest.mark.parametrize("kind", [0, 3, 128])
def test_a_stream_that_begins_with_no_schema_is_refused_before_arrow_reads_one(kind: int) -> None:
    """Arrow reads a schema from any message, and has checked none of a kind that it does not know: two changed bytes
    ended the process."""
    data = bytearray(write([feature_batch(1)]))
    root = 8 + struct.unpack_from("<I", data, 8)[0]
    slots = root - struct.unpack_from("<i", data, root)[0]
    data[root + struct.unpack_from("<H", data, slots + 6)[0]] = kind  # slot 1 of the table Message, header_type
    with pytest.raises(WireError, match=r"begins with a message of kind|Arrow cannot read"):
        list(read_stream([bytes(data)]))


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(WireError, match="after the end marker"):
        list(read_stream([write([feature_batch(1)]) + b"x"]))


def test_declared_lengths_cost_nothing_until_the_bytes_arrive() -> None:
    data = write([feature_batch(4)])
    header = len(StreamEncoder(SHAPES, DTYPES).header())
    body = struct.unpack_from("<q", data, data.index(struct.pack("<q", _body_length(data, header))))[0]
    hostile = data.replace(struct.pack("<q", body), struct.pack("<q", 2**40))
    with pytest.raises(WireError, match="declares a body"):
        list(read_stream([hostile]))
    patient = data.replace(struct.pack("<q", body), struct.pack("<q", 2**29))
    decoder = StreamDecoder()
    assert list(decoder.feed(patient[:-8])) == []
    assert decoder.held_bytes < len(data)
    with pytest.raises(TruncatedStreamError):
        decoder.finish()


def _body_length(data: bytes, header: int) -> int:
    message = pa.ipc.read_message(pa.py_buffer(data[header:]))
    return message.body.size


def test_decompression_bombs_are_refused_before_memory_is_spent() -> None:
    encoder = StreamEncoder(((1000, 1000),), (torch.float32,), compression="zstd")
    bomb = FeatureBatch(np.arange(8), np.zeros(8, np.int64), (torch.zeros(8, 1000, 1000),))
    data = encoder.header() + encoder.encode(bomb) + encoder.end()
    assert len(data) < 100_000
    with pytest.raises(WireError, match="decompresses to more"):
        list(read_stream([data], limits=StreamLimits(body_bytes=2**20)))


def test_more_rows_than_a_request_may_name_are_refused() -> None:
    """Compressed they are next to nothing: 20 million in 13 kB became 2.3 GB of Python's objects."""
    rows = MAX_SPAN + 1
    encoder = StreamEncoder(((),), (torch.uint8,), compression="zstd")
    none = FeatureBatch(np.zeros(rows, np.int64), np.zeros(rows, np.int64), (torch.zeros(rows, dtype=torch.uint8),))
    data = encoder.header() + encoder.encode(none) + encoder.end()
    assert len(data) < 10_000
    with pytest.raises(WireError, match="has 65537 rows, over the limit of 65536"):
        list(read_stream([data]))
    assert [len(batch) for batch in read_stream([data], limits=StreamLimits(rows=rows))] == [rows]


def test_streams_of_others_are_refused() -> None:
    def stream(schema: pa.Schema, **columns: pa.Array) -> bytes:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
        return sink.getvalue()

    plain = pa.schema([("index", pa.int64())])
    with pytest.raises(WireError, match="protocol 'none'"):
        list(read_stream([stream(plain, index=pa.array([1]))]))
    ours = {"hapi.protocol": "1", "hapi.cut": "output"}
    with pytest.raises(WireError, match="unexpected columns"):
        list(read_stream([stream(plain.with_metadata(ours), index=pa.array([1]))]))
    text = pa.schema(
        [("index", pa.int64()), ("label", pa.int64()), ("features", pa.string()), ("error", pa.string())], ours
    )
    one = pa.array([1])
    with pytest.raises(WireError, match="not a fixed-shape tensor"):
        list(read_stream([stream(text, a=one, b=one, c=pa.array(["x"]), d=pa.array([None], pa.string()))]))
    unsaid = pa.schema(
        [
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("features", pa.fixed_shape_tensor(pa.uint16(), (1,))),
            ("error", pa.string()),
        ],
        ours,
    )
    with pytest.raises(WireError, match="does not say which dtype"):
        list(read_stream([unsaid.serialize().to_pybytes()]))


def test_the_encoder_refuses_what_it_did_not_announce() -> None:
    encoder = StreamEncoder(((3,),), (torch.float32,))
    rows = {"indices": np.arange(2), "labels": np.zeros(2, np.int64)}
    with pytest.raises(InputError, match="announced"):
        encoder.encode(FeatureBatch(**rows, tensors=(torch.zeros(2, 4),)))
    with pytest.raises(InputError, match="announced"):
        encoder.encode(FeatureBatch(**rows, tensors=(torch.zeros(2, 3).half(),)))
    with pytest.raises(InputError, match="errors at"):
        encoder.encode(FeatureBatch(**rows, tensors=(torch.zeros(2, 3),), errors={2: "beyond"}))
    with pytest.raises(InputError, match="as many objects"):
        StreamEncoder(cut="input").encode(FeatureBatch(**rows))
    with pytest.raises(InputError, match="gzip"):
        StreamEncoder(((3,),), (torch.float32,), compression="gzip")
    with pytest.raises(InputError, match="shapes"):
        StreamEncoder(((3,),), (torch.float32,), cut="input")


def objects_batch(windows: np.ndarray | None) -> FeatureBatch:
    return FeatureBatch(
        indices=np.arange(3), labels=np.full(3, -1, np.int64), objects=[b"one", b"", b"three"], windows=windows
    )


def test_where_a_part_lies_in_its_picture_travels_beside_it() -> None:
    windows = np.array([[1, 2, 300, 400], [0, 0, 0, 0], [8, 16, 5000, 6000]], np.int32)
    encoder = StreamEncoder(compression="trimmed", cut="input")
    data = encoder.header() + encoder.encode(objects_batch(windows)) + encoder.encode(objects_batch(None))
    first, second = read_stream([data + encoder.end()])
    assert first.objects == [b"one", b"", b"three"]
    assert np.array_equal(first.windows, windows)
    assert not second.windows.any()


def test_objects_as_they_are_stored_say_nothing_of_windows() -> None:
    encoder = StreamEncoder(cut="input")
    (batch,) = read_stream([encoder.header() + encoder.encode(objects_batch(None)) + encoder.end()])
    assert batch.windows is None


def test_only_stored_objects_can_be_trimmed() -> None:
    with pytest.raises(InputError, match="trimmed"):
        StreamEncoder(SHAPES, DTYPES, compression="trimmed")
    with pytest.raises(InputError, match="windows"):
        StreamEncoder(compression="trimmed", cut="input").encode(objects_batch(np.zeros((2, 4), np.int32)))
