"""The kinds of arguments that transforms take. Each reads a JSON value or what torchvision keeps as an attribute.

A kind's `read` gives the plain JSON form or raises ValueError; `make` turns that form into what the constructor wants.
Sizes are bounded here, so that a request cannot ask a server for images that fill its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.functional import _interpolation_modes_from_int

MAX_SIDE = 4096
"""Largest side, in pixels, that a transform may resize, crop or pad to."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "uint8": torch.uint8}


@dataclass(frozen=True)
class Argument:
    """One kind of argument."""

    read: Callable[[Any], Any]
    make: Callable[[Any], Any] = field(default=lambda value: value)


def integer(low: int, high: int) -> Argument:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, got {_shown(value)}")
        return int(value)

    return Argument(read)


def number(low: float = -1e6, high: float = 1e6) -> Argument:
    def read(value: Any) -> int | float:
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, got {_shown(value)}")
        return value if isinstance(value, int) else float(value)

    return Argument(read)


def flag() -> Argument:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, got {_shown(value)}")
        return value

    return Argument(read)


def word(*allowed: str) -> Argument:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}, got {_shown(value)}")
        return str(value)

    return Argument(read)


def optional(kind: Argument) -> Argument:
    return Argument(
        lambda value: None if value is None else kind.read(value),
        lambda value: None if value is None else kind.make(value),
    )


def several(kind: Argument, *lengths: int) -> Argument:
    """A list of as many values as one of `lengths` says."""

    def read(value: Any) -> list[Any]:
        value = _plain(value)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) not in lengths:
            raise ValueError(f"must be a list of {' or '.join(map(str, lengths))} values, got {_shown(value)}")
        return [kind.read(item) for item in value]

    return Argument(read)


def either(*kinds: Argument) -> Argument:
    """The first kind that fits."""

    def read(value: Any) -> Any:
        reasons = []
        for kind in kinds:
            try:
                return kind.read(value)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(", or ".join(reasons))

    return Argument(read)


def side(low: int = 1) -> Argument:
    return integer(low, MAX_SIDE)


def size() -> Argument:
    """[edge] or [height, width]; a bare number is [edge]."""
    form = either(side(), several(side(), 1, 2))

    def read(value: Any) -> list[int]:
        plain = form.read(value)
        return plain if isinstance(plain, list) else [plain]

    return Argument(read)


def padding() -> Argument:
    return either(side(0), several(side(0), 1, 2, 4))


def fill() -> Argument:
    return optional(either(number(), several(number(), 1, 3)))


def probability() -> Argument:
    return number(0, 1)


def interval(low: float = -1e6, high: float = 1e6) -> Argument:
    """[least, most]."""
    pair = several(number(low, high), 2)

    def read(value: Any) -> list[Any]:
        least, most = pair.read(value)
        if least > most:
            raise ValueError(f"must be [least, most], got {_shown(value)}")
        return [least, most]

    return Argument(read)


def interpolation() -> Argument:
    def read(value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            with suppress(KeyError):  # another number is none of its filters
                value = _interpolation_modes_from_int(value)
        return named(InterpolationMode).read(value)

    return Argument(read, InterpolationMode)


def named(kind: type[Enum]) -> Argument:
    """A member of an enumeration, by its value."""

    def read(value: Any) -> str:
        try:
            return kind(value).value
        except ValueError as error:
            allowed = ", ".join(str(member.value) for member in kind)
            raise ValueError(f"must be one of {allowed}, got {_shown(value)}") from error

    return Argument(read, kind)


def policy() -> Argument:
    return named(AutoAugmentPolicy)


def dtype() -> Argument:
    def read(value: Any) -> str:
        for name, known in DTYPES.items():
            if value == name or value is known:
                return name
        raise ValueError(f"must be one of {', '.join(DTYPES)}, got {_shown(value)}")

    return Argument(read, DTYPES.__getitem__)


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as Python values."""
    return value.tolist() if hasattr(value, "tolist") else value


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
