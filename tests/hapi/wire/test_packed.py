"""Packed float32: every bit pattern arrives, parts that do not fit are refused, and other tensors are left alone."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hapi.errors import WireError
from hapi.wire import FeatureBatch, StreamEncoder, StreamLimits, read_stream
from hapi.wire.packed import Packed, bitmap_bytes, pack, unpack

SHAPES = [(3, 5, 5), (17,), (8,), (1,), (), (2, 3, 4, 5)]
AWKWARD = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x7F7FFFFF]
"""Both zeros, subnormal numbers, infinities, NaNs with payloads, the largest number."""
PATTERNS = st.sampled_from(AWKWARD) | st.integers(0, 2**32 - 1)


def tensor_of(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.float32))


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().numpy().view(np.uint32)


def sparse(rows: int, shape: tuple[int, ...], zeros: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, *shape, generator=generator)
    return torch.where(torch.rand(rows, *shape, generator=generator) < zeros, torch.zeros(()), values)


def write(*tensors: torch.Tensor, codec: str = "float32", compression: str = "packed", **more: int) -> bytes:
    encoder = StreamEncoder([t.shape[1:] for t in tensors], [t.dtype for t in tensors], codec, compression, **more)
    rows = len(tensors[0])
    batch = FeatureBatch(np.arange(rows), np.zeros(rows, np.int64), tensors)
    return encoder.header() + encoder.encode(batch) + encoder.end()


@settings(max_examples=150, deadline=None)
@given(arrays(np.uint32, st.tuples(st.integers(0, 5), st.integers(1, 40)), elements=PATTERNS))
def test_any_bit_pattern_comes_back(bits: np.ndarray) -> None:
    assert np.array_equal(unpack(pack(bits), bits.shape[1]), bits)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    rows=st.integers(1, 6),
    message_bytes=st.sampled_from([1, 500, 2**20]),
    data=st.data(),
)
def test_streams_keep_every_bit(shape: tuple[int, ...], rows: int, message_bytes: int, data: st.DataObject) -> None:
    bits = data.draw(arrays(np.uint32, (rows, *shape), elements=PATTERNS))
    found = list(read_stream([write(tensor_of(bits), message_bytes=message_bytes)]))
    assert (len(found) == rows) if message_bytes == 1 else found
    got = torch.cat([batch.tensors[0] for batch in found])
    assert got.dtype == torch.float32
    assert np.array_equal(bits_of(got), bits)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 1.0], ids=["no zeros", "half", "only zeros"])
@pytest.mark.parametrize("shape", [(1000,), (3, 300, 400)], ids=["many rows in a block", "a row larger than a block"])
def test_blocks_of_rows_make_no_difference(zeros: float, shape: tuple[int, ...]) -> None:
    values = sparse(300 if len(shape) == 1 else 3, shape, zeros)
    (got,) = read_stream([write(values)])
    assert np.array_equal(bits_of(got.tensors[0]), bits_of(values))
    got.tensors[0].add_(1)  # the reader's own


def test_zeros_cost_a_bit_and_negative_ones_do_not_become_positive() -> None:
    packed = pack(np.array([[0, 0x80000000, 0], [0, 0, 0]], np.uint32))
    assert packed.nonzero.tolist() == [[0b01000000], [0]]
    assert packed.ends.tolist() == [0, 1, 1]
    assert (packed.exponent.tolist(), packed.high.tolist(), packed.low.tolist()) == ([0], [0x80], [0])


def test_the_parts_are_what_they_are_called() -> None:
    packed = pack(np.array([[-1.5, 0.15625]], np.float32).view(np.uint32))
    assert packed.exponent.tolist() == [127, 124]
    assert packed.high.tolist() == [0x80 | 0x40, 0x20]
    assert packed.low.tolist() == [0, 0]


def test_features_after_a_relu_are_smaller_than_with_zstd() -> None:
    values = sparse(8, (64, 14, 14), 0.5).abs()
    sizes = {compression: len(write(values, compression=compression)) for compression in ("none", "zstd", "packed")}
    assert sizes["packed"] < 0.85 * sizes["zstd"] < 0.85 * sizes["none"]


def test_failed_samples_are_zeros_and_small() -> None:
    encoder = StreamEncoder([(1000,)], [torch.float32], compression="packed")
    batch = FeatureBatch(np.arange(2), np.zeros(2, np.int64), (torch.zeros(2, 1000),), errors={0: "gone", 1: "gone"})
    data = encoder.encode(batch)
    assert len(data) < 1000
    (got,) = read_stream([encoder.header(), data, encoder.end()])
    assert not got.tensors[0].any()
    assert got.errors == batch.errors


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_what_is_not_float32_on_the_wire_travels_as_with_zstd(codec: str) -> None:
    tensors = (torch.arange(12).view(3, 4), torch.randn(3, 20).double(), torch.randn(3, 20).half())
    if codec == "float32":
        assert len(write(*tensors, codec=codec)) == len(write(*tensors, codec=codec, compression="zstd"))
        tensors = (torch.randn(3, 20), *tensors)
    else:
        tensors = (torch.randn(3, 4, 5, 5), *tensors)
        zstd = write(*tensors, codec=codec, compression="zstd")
        assert write(*tensors, codec=codec) == zstd
    (got,) = read_stream([write(*tensors, codec=codec)])
    (wanted,) = read_stream([write(*tensors, codec=codec, compression="none")])
    assert [tensor.dtype for tensor in got.tensors] == [tensor.dtype for tensor in tensors]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got.tensors, wanted.tensors, strict=True))


def test_any_arrow_reader_reads_it_with_a_few_lines() -> None:
    values = sparse(5, (4, 3), 0.4)
    table = pa.ipc.open_stream(io.BytesIO(write(values))).read_all()
    assert table.column_names == ["index", "label", "features_nonzero", "features_values", "error"]
    assert table.schema.field("features_nonzero").metadata[b"hapi.shape"] == b"4,3"
    bitmap = table["features_nonzero"].combine_chunks().to_numpy_ndarray()
    parts = table["features_values"].combine_chunks().flatten()
    exponent, high, low = (parts.field(name).to_numpy().astype(np.uint32) for name in ("exponent", "high", "low"))
    bits = np.zeros((5, 12), np.uint32)
    bits[np.unpackbits(bitmap, axis=1, count=12) == 1] = (high >> 7) << 31 | exponent << 23 | (high & 127) << 16 | low
    assert np.array_equal(bits.view(np.float32).reshape(5, 4, 3), values.numpy())


def test_a_bitmap_that_does_not_fit_its_values_is_refused() -> None:
    packed = pack(bits_of(sparse(4, (13,), 0.5)))
    for row, byte in ((0, 0), (3, 1)):
        nonzero = packed.nonzero.copy()
        nonzero[row, byte] ^= 0b00010000
        with pytest.raises(WireError, match=f"row {row} of a message"):
            unpack(Packed(nonzero, packed.ends, packed.exponent, packed.high, packed.low), 13)
    nonzero = packed.nonzero.copy()
    nonzero[2, 1] |= 1  # the sixteenth of 13 values
    with pytest.raises(WireError, match="beyond the last"):
        unpack(Packed(nonzero, packed.ends, packed.exponent, packed.high, packed.low), 13)


def _changed(change: Callable[[dict[str, pa.Array]], None]) -> bytes:
    """A stream of three rows of 13 values, with something changed in its columns."""
    encoder = StreamEncoder([(13,)], [torch.float32], compression="packed")
    whole = pa.ipc.open_stream(io.BytesIO(write(sparse(3, (13,), 0.5)))).read_all().combine_chunks().to_batches()[0]
    columns = dict(zip(whole.schema.names, whole.columns, strict=True))
    change(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=whole.schema))
    assert sink.getvalue().startswith(encoder.header()[:8])
    return sink.getvalue()


def _lists(ends: list[int], values: pa.StructArray) -> pa.Array:
    kind = pa.large_list(pa.field("item", values.type, False))
    buffers = [None, pa.py_buffer(np.array(ends, np.int64))]
    return pa.Array.from_buffers(kind, len(ends) - 1, buffers, children=[values])


def _move_a_value(columns: dict[str, pa.Array]) -> None:
    lists = columns["features_values"]
    ends = lists.offsets.to_pylist()
    columns["features_values"] = _lists([ends[0], ends[1] - 1, *ends[2:]], lists.values)


def _forget_a_value(columns: dict[str, pa.Array]) -> None:
    lists = columns["features_values"]
    ends = lists.offsets.to_pylist()
    columns["features_values"] = _lists([*ends[:-1], ends[-1] - 1], lists.values)


def _skip_the_first(columns: dict[str, pa.Array]) -> None:
    lists = columns["features_values"]
    ends = lists.offsets.to_pylist()
    columns["features_values"] = _lists([1, *ends[1:]], lists.values)


def _no_number(columns: dict[str, pa.Array]) -> None:
    lists = columns["features_values"]
    values = lists.values
    exponent = pa.array([None, *values.field(0).to_pylist()[1:]], pa.uint8())
    values = pa.StructArray.from_arrays([exponent, values.field(1), values.field(2)], fields=list(values.type))
    columns["features_values"] = _lists(lists.offsets.to_pylist(), values)


@pytest.mark.parametrize("change", [_move_a_value, _forget_a_value, _skip_the_first, _no_number])
def test_lengths_that_a_stream_declares_are_not_believed(change: Callable[[dict[str, pa.Array]], None]) -> None:
    (got,) = read_stream([_changed(lambda columns: None)])
    assert torch.equal(got.tensors[0], sparse(3, (13,), 0.5))
    with pytest.raises(WireError, match=r"another number of packed values|has nulls|Arrow cannot read"):
        list(read_stream([_changed(change)]))


def test_messages_without_rows_are_read() -> None:
    encoder = StreamEncoder([(2, 3)], [torch.float32], compression="packed")
    schema = pa.ipc.read_schema(pa.py_buffer(encoder.header()))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
    (got,) = read_stream([sink.getvalue()])
    assert got.tensors[0].shape == (0, 2, 3)


def _schema(name: str, field: pa.Field | None) -> pa.Schema:
    """The schema of a packed stream with a field replaced, or left out."""
    schema = pa.ipc.read_schema(pa.py_buffer(StreamEncoder([(4, 6)], [torch.float32], compression="packed").header()))
    fields = [field if other.name == name else other for other in schema]
    return pa.schema([other for other in fields if other is not None], schema.metadata)


def _bitmap(bytes_: int = 3, **said: str) -> pa.Field:
    metadata = {"hapi.dtype": "float32", "hapi.stored": "packed", "hapi.shape": "4,6"} | {
        f"hapi.{key}": value for key, value in said.items()
    }
    return pa.field("features_nonzero", pa.fixed_shape_tensor(pa.uint8(), (bytes_,)), False, metadata)


def _values(kind: pa.DataType) -> pa.Field:
    return pa.field("features_values", kind, False, {"hapi.dtype": "float32", "hapi.stored": "packed"})


@pytest.mark.parametrize(
    "schema",
    [
        _schema("features_nonzero", None),
        _schema("features_values", None),
        _schema("features_nonzero", _bitmap(4)),
        _schema("features_nonzero", _bitmap(shape="4,7")),
        _schema("features_nonzero", _bitmap(shape="4,-6")),
        _schema("features_nonzero", _bitmap(shape="[4, 6]")),
        _schema("features_nonzero", _bitmap(shape="0,6")),
        _schema("features_nonzero", _bitmap(shape=",".join(["1"] * 17))),
        _schema("features_nonzero", _bitmap(2**28 + 1, shape="2147483649")),
        _schema("features_nonzero", _bitmap(dtype="float64")),
        _schema("features_nonzero", _bitmap(stored="float32")),
        _schema("features_values", _values(pa.large_list(pa.float32()))),
        _schema("features_values", pa.field("features_values", _schema("", None).field("features_values").type)),
    ],
    ids=[
        "no bitmap", "no values", "bytes", "shape", "negative", "no shape", "empty", "dimensions", "huge", "dtype",
        "stored", "kind", "unsaid",
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(schema: pa.Schema) -> None:
    with pytest.raises(WireError, match="features"):
        list(read_stream([schema.serialize().to_pybytes()]))


def test_what_decodes_to_more_than_the_limit_is_refused_before_it_is_decoded() -> None:
    data = write(torch.zeros(64, 4096))
    assert len(data) < 10_000
    with pytest.raises(WireError, match="decodes to 1048576 bytes"):
        list(read_stream([data], limits=StreamLimits(body_bytes=2**19)))


def test_messages_are_as_small_for_who_reads_them() -> None:
    """Only zeros are 32 times larger where they are read: messages of the usual size were over a reader's limit."""
    data = write(torch.zeros(64, 1000), message_bytes=16_000)
    found = list(read_stream([data], limits=StreamLimits(body_bytes=20_000)))
    assert [len(batch) for batch in found] == [4] * 16


def test_a_bitmap_has_whole_bytes() -> None:
    assert [bitmap_bytes(values) for values in (1, 8, 9, 4096)] == [1, 1, 2, 512]
