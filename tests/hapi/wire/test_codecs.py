"""Codecs: exact ones are, narrow ones round as torch does, and nothing but floating-point values is touched."""

from __future__ import annotations

import pytest
import torch

from hapi.errors import InputError
from hapi.wire import CODECS, get_codec
from hapi.wire.codecs import Codec
from hapi.wire.columns import Column, read_columns

SPECIAL = torch.tensor([[0.0, -0.0, 1.0, 1e-40], [float("inf"), -float("inf"), float("nan"), 3.4e38]])
ALL_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def travel(codec: Codec, tensor: torch.Tensor) -> torch.Tensor:
    fields = codec.fields("features", tensor.shape[1:], tensor.dtype)
    (column,) = read_columns(fields, ["features"])
    return column.decode(*codec.encode(tensor))


def assert_bits_equal(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert torch.equal(got.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_exact_codec_keeps_every_bit_of_every_dtype(dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (5, 2, 3)) if dtype == torch.bool else torch.randn(5, 2, 3) * 50
    assert_bits_equal(travel(get_codec("float32"), values.to(dtype)), values.to(dtype))


def test_the_exact_codec_keeps_nan_infinity_and_signed_zero() -> None:
    assert_bits_equal(travel(get_codec("float32"), SPECIAL), SPECIAL)


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_narrow_codecs_round_as_torch_does(name: str, dtype: torch.dtype) -> None:
    values = torch.cat([SPECIAL, torch.randn(50, 4) * 1000])
    got = travel(get_codec(name), values)
    assert got.dtype == torch.float32
    wanted = values.to(dtype).float()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert got[1, 0] == float("inf")


def test_only_float16_overflows() -> None:
    big = torch.tensor([[70000.0]])
    assert travel(get_codec("float16"), big).isinf().all()
    assert travel(get_codec("bfloat16"), big).isfinite().all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.int8], ids=str)
def test_narrow_codecs_leave_the_rest_alone(name: str, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (3, 4)).to(dtype)
    assert_bits_equal(travel(get_codec(name), values), values)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3, 5, 7).to(memory_format=torch.channels_last),
        torch.randn(6, 4).t(),
        torch.randn(8, 4)[::2],
        torch.randn(3),
        torch.randn(2, 3, requires_grad=True),
        torch.randn(0, 3),
    ],
    ids=["channels_last", "transposed", "strided", "scalars", "with gradient", "no rows"],
)
def test_layout_does_not_matter(tensor: torch.Tensor) -> None:
    got = travel(get_codec("float32"), tensor)
    assert got.shape == tensor.shape
    assert torch.equal(got, tensor.detach())


def test_a_contiguous_tensor_is_not_copied() -> None:
    tensor = torch.zeros(4, 8)
    (array,) = get_codec("float32").encode(tensor)
    assert array.storage.flatten().buffers()[1].address == tensor.data_ptr()
    assert (
        Column.of(*get_codec("float32").fields("f", (8,), torch.float32)).decode(array).data_ptr() == tensor.data_ptr()
    )


def test_bytes_per_row() -> None:
    assert {name: codec.bytes_per_row((6, 5, 5)) for name, codec in CODECS.items()} == {
        "float32": 600,
        "float16": 300,
        "bfloat16": 300,
        "int8": 150 + 6 * 8,
    }
    assert get_codec("float16").bytes_per_row((3,), torch.int64) == 24
    assert get_codec("int8").bytes_per_row((3,), torch.int64) == 24
    assert [codec.exact for codec in CODECS.values()] == [True, False, False, False]


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(InputError, match=r"complex64.*may carry"):
        get_codec("float32").encode(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(InputError, match="per sample"):
        get_codec("float32").encode(torch.zeros(2, 0))
    with pytest.raises(InputError, match="meta"):
        get_codec("float32").encode(torch.zeros(2, 2, device="meta"))
    with pytest.raises(InputError, match=r"int4.*there are: bfloat16, float16, float32, int8"):
        get_codec("int4")
