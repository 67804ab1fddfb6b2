"""The end of a pipeline that makes a number of each of an image's 256 levels, as a table: one pass instead of several.

The table is what the steps themselves make of an image that has every level once, so it is exact to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hapi.data.transforms.steps import FAILURES, Step

LEVELS = 256
_FROM_IMAGE = frozenset({"PILToTensor", "ToImage", "ToTensor"})
_BY_VALUE = frozenset({"ConvertImageDtype", "Normalize", "ToDtype", "ToPureTensor", "hf.Rescale"})
"""What they make of a value depends on that value and its channel only."""


def levels_begin(steps: Sequence[Step]) -> int:
    """The first of the steps at the end that work by value; as many as there are if there are none."""
    first = len(steps)
    for position in reversed(range(len(steps))):
        name = steps[position].name.removeprefix("classic.")
        if name in _FROM_IMAGE:
            return position
        if name not in _BY_VALUE:
            break
    return first


def level_table(steps: Sequence[Step], mode: str) -> np.ndarray | None:
    """Float32 of shape (channels, 256): what the steps make of each level of an image of this mode (RGB, L).

    None if there are no steps, or if that is not what they make: whoever runs them on an image is told why.
    """
    if not steps or mode not in ("RGB", "L"):
        return None
    ramp = Image.fromarray(np.arange(LEVELS, dtype=np.uint8)[None])
    value: Any = Image.merge(mode, [ramp] * len(mode))
    try:
        for step in steps:
            value = step.transform(value)
    except FAILURES:
        return None
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.shape != (len(mode), 1, LEVELS):
        return None
    return value[:, 0].numpy()


def look_up(image: Image.Image, table: np.ndarray) -> torch.Tensor:
    """Float32 of shape (channels, height, width): the image's pixels by the table of its mode."""
    pixels = np.asarray(image).reshape(image.height, image.width, len(table))
    values = np.empty((len(table), image.height, image.width), np.float32)
    for channel, column in enumerate(table):
        np.take(column, pixels[:, :, channel], out=values[channel], mode="clip")  # without, numpy makes a copy first
    return torch.from_numpy(values)
