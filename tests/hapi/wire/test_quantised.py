"""int8: errors bounded per channel, the same for a sample whatever its neighbours, and nothing wrong looks right."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi.errors import WireError
from hapi.wire import FeatureBatch, StreamEncoder, StreamLimits, read_stream
from hapi.wire.quantised import MIN_VALUES_PER_SCALE, dequantise, quantise, scale_shape

SHAPES = [(3, 5, 5), (8, 2, 2), (20, 6), (3, 7), (17,), (1,), (), (2, 3, 4, 5)]


def back(tensor: torch.Tensor) -> torch.Tensor:
    return dequantise(*quantise(tensor), tensor.dtype)


def write(tensor: torch.Tensor, compression: str = "none") -> bytes:
    encoder = StreamEncoder([tensor.shape[1:]], [tensor.dtype], "int8", compression)
    rows = len(tensor)
    batch = FeatureBatch(np.arange(rows), np.zeros(rows, np.int64), (tensor,))
    return encoder.header() + encoder.encode(batch) + encoder.end()


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((64, 7, 7), (64, 1, 1)),
        ((64, 2, 2), (1, 1, 1)),  # 8 bytes for 4 values would double them
        ((197, 768), (1, 768)),
        ((4, 768), (1, 1)),
        ((2048,), (1,)),
        ((), ()),
        ((16, 3, 4, 5), (16, 1, 1, 1)),
    ],
)
def test_channels(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert MIN_VALUES_PER_SCALE == 16
    assert scale_shape(shape) == wanted


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    rows=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    magnitude=st.integers(-44, 34),  # with the shift, all values and their ranges are float32's
    shift=st.sampled_from([0.0, 1.0, -3.0, 1000.0]),
    relu=st.booleans(),
)
def test_the_error_is_at_most_half_a_step_of_the_channel(
    shape: tuple[int, ...], rows: int, seed: int, magnitude: int, shift: float, relu: bool
) -> None:
    values = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed)) + shift
    values = (values.relu() if relu else values) * float(10.0**magnitude)
    steps, scale, offset = quantise(values)
    assert steps.dtype == torch.uint8
    assert scale.shape == offset.shape == (rows, *scale_shape(shape))
    rounding = 1e-6 * values.abs().amax().item() + 255 * 1e-44 if rows else 0.0
    bound = scale.double() / 2 + rounding
    assert (((back(values).double() - values.double()).abs()) <= bound).all()
    if relu and rows:
        assert (back(values)[values == 0] == 0).sum() >= (values == 0).sum() * (offset == 0).all()


def test_after_a_relu_all_levels_are_used_and_zero_stays_zero() -> None:
    values = torch.randn(4, 3, 32, 32).relu()
    steps, _, offset = quantise(values)
    assert (offset == 0).all()
    assert (steps.amax(dim=(2, 3)) == 255).all()
    assert (back(values)[values == 0] == 0).all()


def test_channels_do_not_disturb_each_other() -> None:
    values = torch.randn(2, 3, 8, 8)
    loud = values.clone()
    loud[:, 0] *= 1e6
    assert torch.equal(back(loud)[:, 1:], back(values)[:, 1:])
    tokens = torch.randn(2, 50, 6)
    loud = tokens.clone()
    loud[..., 0] *= 1e6
    assert torch.equal(back(loud)[..., 1:], back(tokens)[..., 1:])


@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from(SHAPES), row=st.integers(0, 4))
def test_a_sample_does_not_depend_on_its_neighbours(shape: tuple[int, ...], row: int) -> None:
    values = torch.randn(5, *shape, generator=torch.Generator().manual_seed(7)) * 10 ** torch.arange(5.0).view(
        -1, *[1] * len(shape)
    )
    assert torch.equal(back(values)[row], back(values[row : row + 1])[0])


def test_blocks_of_rows_make_no_difference() -> None:
    values = torch.randn(9, 4, 256, 256)  # 1 MiB per row
    assert torch.equal(back(values)[8], back(values[8:])[0])


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -7.25, 3e38, 1e-45, 1e-40])
def test_a_constant_channel_is_exact(value: float) -> None:
    values = torch.full((2, 3, 5, 5), value)
    assert torch.equal(back(values), values)


@pytest.mark.parametrize("trouble", [float("nan"), float("inf"), -float("inf")])
def test_a_channel_with_a_value_that_is_no_number_is_none_altogether(trouble: float) -> None:
    values = torch.randn(2, 3, 8, 8)
    values[0, 1, 4, 4] = trouble
    got = back(values)
    assert got[0, 1].isnan().all()
    fine = torch.ones(2, 3, dtype=torch.bool)
    fine[0, 1] = False
    assert torch.equal(got[fine], back(values.nan_to_num(0, 0, 0))[fine])


def test_a_range_beyond_float32_is_not_made_up() -> None:
    values = torch.randn(1, 2, 4, 4)
    values[0, 0, 0, 0], values[0, 0, 0, 1] = 3e38, -3e38
    assert back(values)[0, 0].isnan().all()
    assert back(values)[0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_reader_gets_the_dtype_back(dtype: torch.dtype) -> None:
    values = torch.randn(6, 4, 5, 5).to(dtype)
    (got,) = read_stream([write(values)])
    assert got.tensors[0].dtype == dtype
    assert (got.tensors[0] - values).abs().max() < 0.05


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd", "packed"])
def test_any_arrow_reader_reads_it_with_one_line(compression: str) -> None:
    values = torch.randn(5, 4, 6, 6).relu()
    table = pa.ipc.open_stream(io.BytesIO(write(values, compression))).read_all()
    assert table.column_names == ["index", "label", "features", "features_scale", "features_offset", "error"]
    features, scale, offset = (
        table[f"features{end}"].combine_chunks().to_numpy_ndarray() for end in ("", "_scale", "_offset")
    )
    (ours,) = read_stream([write(values, compression)])
    assert np.array_equal(features * scale + offset, ours.tensors[0].numpy())


def test_several_tensors_of_which_some_are_scaled() -> None:
    tensors = (torch.randn(3, 4, 5, 5), torch.arange(12).view(3, 4), torch.randn(3, 20, 3))
    encoder = StreamEncoder([tensor.shape[1:] for tensor in tensors], [tensor.dtype for tensor in tensors], "int8")
    batch = FeatureBatch(np.arange(3), np.zeros(3, np.int64), tensors)
    (got,) = read_stream([encoder.header() + encoder.encode(batch) + encoder.end()])
    assert torch.equal(got.tensors[0], back(tensors[0]))
    assert torch.equal(got.tensors[1], tensors[1])
    assert torch.equal(got.tensors[2], back(tensors[2]))


def test_no_rows() -> None:
    assert back(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def _schema(**replaced: pa.Field | None) -> pa.Schema:
    """The schema of an int8 stream with some fields replaced, or left out."""
    schema = StreamEncoder([(4, 6, 6)], [torch.float32], "int8")._schema
    fields = [replaced.get(field.name, field) for field in schema]
    return pa.schema([field for field in fields if field is not None], schema.metadata)


def _scale(kind: pa.DataType, name: str = "features_scale", dtype: str = "float32") -> pa.Field:
    return pa.field(name, kind, False, {"hapi.dtype": dtype, "hapi.stored": dtype})


@pytest.mark.parametrize(
    "schema",
    [
        _schema(features_scale=None),
        _schema(features_offset=None),
        _schema(features_scale=None, features_offset=None),
        _schema(features_scale=_scale(pa.fixed_shape_tensor(pa.float32(), (5, 1, 1)))),
        _schema(features_scale=_scale(pa.fixed_shape_tensor(pa.float32(), (4,)))),
        _schema(features_scale=_scale(pa.fixed_shape_tensor(pa.float64(), (4, 1, 1)), dtype="float64")),
        _schema(features_scale=_scale(pa.float32())),
    ],
    ids=["no scale", "no offset", "neither", "channels", "dimensions", "dtype", "no tensor"],
)
def test_scales_that_do_not_fit_are_refused(schema: pa.Schema) -> None:
    with pytest.raises(WireError, match="features"):
        list(read_stream([schema.serialize().to_pybytes()]))


def test_what_decodes_to_more_than_the_limit_is_refused_before_it_is_decoded() -> None:
    data = write(torch.zeros(64, 4, 32, 32))
    assert len(data) < 300_000
    limits = StreamLimits(body_bytes=2**19)
    with pytest.raises(WireError, match="decodes to 1048576 bytes"):
        list(read_stream([data], limits=limits))
