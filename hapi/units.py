"""Reading and printing quantities: bytes, bits per second, seconds."""

from __future__ import annotations

import math
import re

from hapi.errors import InputError

_NUMBER = r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*"
_BIT_FACTORS = {"": 1e0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTE_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bandwidth(text: str) -> float:
    """Bits per second from '1Gbit', '300mbit/s', '2.5 Gbps' or a plain number; raises InputError."""
    match = re.fullmatch(_NUMBER + r"([kmgt]?)(?:bit(?:/s)?|bps)?\s*", text.lower())
    rate = float(match[1]) * _BIT_FACTORS[match[2]] if match else 0.0
    if not 0 < rate < math.inf:
        raise InputError(f"bandwidth {text!r}: not a rate. Say for example 100mbit or 1Gbit (bits per second).")
    return rate


def parse_bytes(text: str) -> int:
    """Bytes from '400MB', '2GiB', '64k' or a plain number; decimal unless an `i` says binary; raises InputError."""
    match = re.fullmatch(_NUMBER + r"([kmgt]i?|)b?\s*", text.lower())
    count = float(match[1]) * _BYTE_FACTORS[match[2]] if match else math.inf
    if not math.isfinite(count):
        raise InputError(f"size {text!r}: not a number of bytes. Say for example 400MB or 2GiB.")
    return int(count)


def format_bytes(count: float) -> str:
    """'1.2 MB': decimal units, three significant digits."""
    return _scaled(count, "B")


def format_bandwidth(bits_per_s: float) -> str:
    """'300 Mbit/s'."""
    return _scaled(bits_per_s, "bit/s")


def format_seconds(seconds: float) -> str:
    """'1.53 ms', '12.3 s', '4 min 02 s'."""
    if seconds >= 120:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return "0 s" if seconds == 0 else f"{seconds / 1e-9:.3g} ns"


def _scaled(value: float, unit: str) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {letter}{unit}"
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
