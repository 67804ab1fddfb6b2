"""Quantities: what people type is read, what is printed is short and can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi.errors import InputError
from hapi.units import format_bandwidth, format_bytes, format_seconds, parse_bandwidth, parse_bytes


@pytest.mark.parametrize(
    ("text", "bits_per_s"),
    [
        ("1Gbit", 1e9),
        ("1 gbit/s", 1e9),
        ("2.5 Gbps", 2.5e9),
        ("300mbit", 3e8),
        ("100M", 1e8),
        ("64kbit/s", 64e3),
        ("1e9", 1e9),
        ("1.5e+2 Mbit", 1.5e8),
        ("5", 5.0),
        (".5g", 5e8),
        ("1Tbit", 1e12),
    ],
)
def test_bandwidths(text: str, bits_per_s: float) -> None:
    assert parse_bandwidth(text) == bits_per_s


@pytest.mark.parametrize(
    "text", ["", "fast", "0", "-1Gbit", "1GB", "1 Gbit extra", "nan", "1,5Gbit", "1e999", "1e308Tbit"]
)
def test_no_bandwidths(text: str) -> None:
    with pytest.raises(InputError, match="Say for example"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("400MB", 4 * 10**8),
        ("2GiB", 2**31),
        ("64k", 64_000),
        ("64Ki", 65_536),
        ("17", 17),
        ("1.5kB", 1500),
        ("3 TB", 3 * 10**12),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1", "1Gbit", "MB", "1e999", "1e308TB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="not a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (123_456, "123 kB"),
        (1.5e9, "1.5 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_printed_sizes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.4e-9, "3.4 ns"),
        (1.5e-6, "1.5 us"),
        (0.00153, "1.53 ms"),
        (12.345, "12.3 s"),
        (119.6, "120 s"),
        (120, "2 min 00 s"),
        (242.9, "4 min 02 s"),
    ],
)
def test_printed_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(1, 1e14))
def test_printed_quantities_can_be_read_back(value: float) -> None:
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=0.006, abs=1)
    assert parse_bandwidth(format_bandwidth(value)) == pytest.approx(value, rel=0.006)
