"""A resize and the centre crop that follows it, as one: Pillow makes only what the crop keeps.

Given the box of an image that a part of the result is made of, Pillow makes that part alone. It has the bits that it
has in the whole if three things hold (src/libImaging/Resample.c of Pillow 9.5 to 13.0):

- The box is exact: its edges are taken as float32, and the scale is its length by that of the part.
- The weights are those of the whole. Pixel i is made around `edge + (i - first + 0.5) * scale`, in double precision.
  If the scale is a fraction of a power of two, nothing is rounded, and that is `(i + 0.5) * scale`. If it is not, the
  last bits may differ; `_BILINEAR_SIDE` says where that does not reach the weights, which are multiples of 2**-22.
- The two passes, each of which rounds to 8 bits, have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image

from hapi.data.transforms.parts import Box, known_crop, known_resize
from hapi.data.transforms.steps import FAILURES, Step

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_COPIES = frozenset({"PILToTensor", "ToImage"})
"""They make a tensor of an image's bytes: it does not matter whether the crop comes before or after."""
_SIDE = 4096
"""Up to here nothing is rounded where the scale is a fraction of a power of two: edges have 24 bits, centres 25."""
_BILINEAR_SIDE = 2048
"""Up to here bilinear weights are the same whatever the scale.

They are A / B of integers, B below 2 * size * (scale + 1), or 2 * resized where the image gets larger. A tie between
two multiples of 2**-22 needs a B of 2**23, so there is none, and the nearest is 1 / 2B away, in units of 2**-22. Double
precision moves centres by 3 * 2**-53 * size, and so weights by less than 2/5 of that.
"""
_TRIED = (((48, 75), (32, 50)), ((75, 48), (50, 32)), ((42, 60), (32, 45)), ((100, 42), (76, 32)), ((16, 20), (32, 40)))
"""Heights and widths on which `pillow_agrees` tries a resize: smaller and larger, in both orders."""
_TRIED_CROP = 28
"""How much of each is kept, in height and width."""

Size = tuple[int, int]
"""Height and width."""


class Part(NamedTuple):
    """What to make of an image: `box` of a result of this size, and of that what is `kept`."""

    size: Size
    box: Box
    kept: Box

    def of(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        (height, width), (left, top, right, bottom), kept = self
        across, down = image.size
        edges = (left * across / width, top * down / height, right * across / width, bottom * down / height)
        made = image.resize((right - left, bottom - top), resample, edges)
        return made.crop((kept.left - left, kept.top - top, kept.right - left, kept.bottom - top))


class CroppedResize:
    """Two steps of a pipeline as one; those between them, if any, only copy. Safe to call from several threads."""

    def __init__(self, steps: Sequence[Step], resize_at: int, crop_at: int) -> None:
        self.resize_at, self.crop_at = resize_at, crop_at
        self._resize, self._crop = steps[resize_at], steps[crop_at]
        self._resample = _FILTERS[self._resize.args["interpolation"]]
        self._part = lru_cache(maxsize=4096)(self._find_part)

    def __call__(self, image: object) -> Image.Image | None:
        """What both make of an image, as an image; None if it has to be made step by step."""
        if not isinstance(image, Image.Image) or image.mode not in ("RGB", "L"):
            return None
        part = self._part((image.height, image.width))
        if part is None or not pillow_agrees(self._resample):
            return None
        return part.of(image, self._resample)

    def _find_part(self, size: Size) -> Part | None:
        try:
            resizing = known_resize(self._resize, size)
            cropping = resizing and known_crop(self._crop, resizing[0], nullcontext())
        except FAILURES:  # on the image itself they fail as well, and say of what
            return None
        if not resizing or not cropping or resizing[0] == size:
            return None
        (height, width), before = cropping
        return exact_part(size, resizing[0], before(Box(0, 0, width, height)), self._resample)


def cropped_resize(steps: Sequence[Step]) -> CroppedResize | None:
    """The first resize of an image whose result is cropped at its centre; None if there is none."""
    for resize_at, step in enumerate(steps):
        resizes = step.name.removeprefix("classic.") in ("Resize", "hf.FitResize")
        if not resizes or step.args["interpolation"] not in _FILTERS:
            continue
        if step.args.get("antialias") is False:  # torchvision warns that it is not heeded
            continue
        crop_at = resize_at + 1
        while crop_at < len(steps) and steps[crop_at].name.removeprefix("classic.") in _COPIES:
            crop_at += 1
        name = steps[crop_at].name if crop_at < len(steps) else ""
        if name.removeprefix("classic.") == "CenterCrop" or (name == "hf.CenterCrop" and crop_at > resize_at + 1):
            return CroppedResize(steps, resize_at, crop_at)
    return None


def exact_part(size: Size, resized: Size, kept: Box, resample: Image.Resampling) -> Part | None:
    """The smallest part with `kept` in it that has the bits of the whole; None if that is the whole."""
    rows = {(0, resized[0]), _exact_span(size[0], resized[0], kept.top, kept.bottom, resample)}
    columns = {(0, resized[1]), _exact_span(size[1], resized[1], kept.left, kept.right, resample)}
    order = _by_height_first(size, resized)
    boxes = [
        Box(left, top, right, bottom)
        for (top, bottom), (left, right) in product(rows, columns)
        if _by_height_first(size, (bottom - top, right - left)) == order
    ]
    box = min(boxes, key=lambda box: (box.right - box.left) * (box.bottom - box.top))
    return None if box == (0, 0, resized[1], resized[0]) else Part(resized, box, kept)


def _exact_span(size: int, resized: int, first: int, end: int, resample: Image.Resampling) -> tuple[int, int]:
    """The fewest pixels of one dimension, `first` to `end` among them, whose box and weights are exact."""
    denominator = resized // math.gcd(size, resized)
    odd = denominator // (denominator & -denominator)
    side = _SIDE if odd == 1 else _BILINEAR_SIDE if resample is Image.Resampling.BILINEAR else 0
    if max(size, resized) > side:
        return 0, resized
    return first - first % odd, min(resized, -(-end // odd) * odd)


def _by_height_first(size: Size, resized: Size) -> bool:
    """Whether the vertical pass comes first in Pillow 13. In earlier ones it never does, and any part is right."""
    less = size[0] - resized[0]
    return less > 0 and less > 2 * (size[1] - resized[1])


@cache
def pillow_agrees(resample: Image.Resampling) -> bool:
    """Whether this Pillow makes parts of noise with the bits of the wholes, as those do whose source was read."""
    for size, (height, width) in _TRIED:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, np.uint8))
        left, top = (width - _TRIED_CROP) // 2, (height - _TRIED_CROP) // 2
        kept = Box(left, top, left + _TRIED_CROP, top + _TRIED_CROP)
        part = exact_part(size, (height, width), kept, resample)
        whole = image.resize((width, height), resample).crop(kept)
        if part is not None and part.of(image, resample).tobytes() != whole.tobytes():
            return False
    return True
