"""Which part of an image a pipeline reads: whatever lies outside of it, the result is the same to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torchvision.transforms.functional import _compute_resized_output_size

from hapi.data.transforms.kernels import FitResize
from hapi.data.transforms.steps import FAILURES, Step

_BY_PIXEL = frozenset(
    {
        "ConvertImageDtype",
        "Grayscale",
        "Normalize",
        "PILToTensor",
        "RGB",
        "ToDtype",
        "ToImage",
        "ToPureTensor",
        "ToTensor",
        "hf.FlipChannels",
        "hf.Rescale",
    }
)
"""What they make of a pixel depends on that pixel only."""
_CROPS = frozenset({"CenterCrop", "RandomCrop", "hf.CenterCrop"})
_REACH = {"nearest": 1.0, "nearest-exact": 1.0, "box": 1.0, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0}
_MOST_REACH = 3.0
"""How far an interpolation looks, in pixels of the image that is resized, or of the result where that is smaller."""
_ROUNDING = 1
"""Pixels that are added for a resize, as its arithmetic is rounded."""


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner; `right` and `bottom` are not in it."""

    left: int
    top: int
    right: int
    bottom: int


def part_read(steps: Sequence[Step], width: int, height: int, draws: AbstractContextManager[Any]) -> Box:
    """A box with every pixel that the steps read of an image of this size: all of it where they are not known.

    Steps that crop at random draw within `draws`, which must be as it is when the pipeline begins.
    """
    before: list[Callable[[Box], Box]] = []
    size = (height, width)
    try:
        for step in steps:
            if step.name.removeprefix("classic.") in _BY_PIXEL:
                continue
            known = known_resize(step, size) or known_crop(step, size, draws)
            if known is None:
                break
            size, read = known
            before.append(read)
    except FAILURES:  # on the image itself they fail as well, and say of what
        return Box(0, 0, width, height)
    box = Box(0, 0, size[1], size[0])
    for read in reversed(before):
        box = read(box)
    return box


Known = tuple[tuple[int, int], Callable[[Box], Box]]
"""What a step makes of an image: height and width, and which box it reads for a box of its result."""


def known_resize(step: Step, size: tuple[int, int]) -> Known | None:
    """Of a step that resizes an image of this height and width; None of any other step."""
    name, args = step.name.removeprefix("classic."), step.args
    if name == "Resize":
        height, width = _compute_resized_output_size(size, args["size"], args["max_size"], allow_size_none=True)
    elif name == "hf.FitResize" and isinstance(step.transform, FitResize):
        height, width = step.transform.output_size(*size)
    else:
        return None
    reach = _REACH.get(args["interpolation"], _MOST_REACH)
    return (height, width), partial(_before_resize, size, (height, width), reach)


def _before_resize(size: tuple[int, int], resized: tuple[int, int], reach: float, box: Box) -> Box:
    top, bottom = _reached(box.top, box.bottom, size[0], resized[0], reach)
    left, right = _reached(box.left, box.right, size[1], resized[1], reach)
    return Box(left, top, right, bottom)


def _reached(first: int, end: int, size: int, resized: int, reach: float) -> tuple[int, int]:
    """Pixel i of the result is made of those within `reach` of (i + 0.5) * scale, wider if the image gets smaller."""
    scale = size / resized
    around = reach * max(1.0, scale)
    low = math.floor((first + 0.5) * scale - around) - _ROUNDING
    high = math.ceil((end - 0.5) * scale + around) + _ROUNDING
    return max(0, low), min(size, high)


def known_crop(step: Step, size: tuple[int, int], draws: AbstractContextManager[Any]) -> Known | None:
    """Of a crop that stays within the image; None of any other step.

    What a crop takes shows where it is a view of a tensor without values.
    """
    name = step.name.removeprefix("classic.")
    image = torch.empty((1, *size), dtype=torch.uint8, device="meta")
    if name == "RandomResizedCrop":
        transform: Any = step.transform
        with draws:
            if step.name == name:
                at = transform.make_params([image])
                top, left, height, width = at["top"], at["left"], at["height"], at["width"]
            else:
                top, left, height, width = transform.get_params(image, transform.scale, transform.ratio)
        edges = step.args["size"]
        made = (edges[0], edges[-1])
        return made, lambda _: Box(left, top, left + width, top + height)
    if name not in _CROPS or step.args.get("padding") is not None:
        return None
    with draws:
        view = step.transform(image)
    height, width = view.shape[-2:]
    if height > size[0] or width > size[1]:  # it is padded first
        return None
    top, left = divmod(view.storage_offset(), size[1])
    return (height, width), lambda box: Box(box.left + left, box.top + top, box.right + left, box.bottom + top)
