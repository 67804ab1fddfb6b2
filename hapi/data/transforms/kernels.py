"""Operations of Hugging Face image processors that torchvision does slightly otherwise, without that library.

Each works on one (3, H, W) tensor and is exact to the last bit; hapi.data.transforms.processors says when.
"""

from __future__ import annotations

import math

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


class CenterCrop:
    """A crop that rounds down, padding with zeros first; `rounding` says how odd margins are shared when padding.

    `floor` is what the torchvision-backed processors do, `ceil` what the PIL-backed ones do.
    """

    def __init__(self, height: int, width: int, rounding: str) -> None:
        self.height, self.width, self.rounding = height, width, rounding

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        old_height, old_width = image.shape[-2:]
        height, width = max(old_height, self.height), max(old_width, self.width)
        if (height, width) != (old_height, old_width):
            top, left = (self._before(height - old_height), self._before(width - old_width))
            image = F.pad(image, [left, top, width - old_width - left, height - old_height - top])
        if self.rounding == "floor":
            top, left = int((height - self.height) / 2), int((width - self.width) / 2)
        else:
            top = (old_height - self.height) // 2 + self._before(height - old_height)
            left = (old_width - self.width) // 2 + self._before(width - old_width)
        return image[..., top : top + self.height, left : left + self.width]

    def _before(self, margin: int) -> int:
        return margin // 2 if self.rounding == "floor" else math.ceil(margin / 2)


class Rescale:
    """Multiplies by `factor`, in double precision and then rounded (PIL-backed) or in float32, and adds `offset`."""

    def __init__(self, factor: float, offset: float, double: bool) -> None:
        self.factor, self.offset, self.double = factor, offset, double

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        scaled = (image.to(torch.float64) * self.factor).to(torch.float32) if self.double else image * self.factor
        return scaled + self.offset if self.offset else scaled


class FlipChannels:
    """RGB to BGR, or back."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(-3)


class FitResize:
    """Resizes (image or tensor) keeping the aspect ratio, within two bounds.

    `within` is `edges`: the shorter side becomes `short` unless the longer one would exceed `long`; or `box`: as large
    as fits in `short` (height) by `long` (width).
    """

    def __init__(self, short: int, long: int, within: str, interpolation: InterpolationMode) -> None:
        self.short, self.long, self.within, self.interpolation = short, long, within, interpolation

    def __call__(self, image: object) -> object:
        size = self.output_size(*F.get_size(image))
        return F.resize(image, list(size), interpolation=self.interpolation, antialias=True)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        if self.within == "box":
            scale = min(self.short / height, self.long / width)
            return int(height * scale), int(width * scale)
        size, exact = self.short, None
        small, large = float(min(height, width)), float(max(height, width))
        if large / small * size > self.long:
            exact = self.long * small / large
            size = round(exact)
        if size == min(height, width):
            return height, width
        ratio = exact if exact is not None else size
        return (int(ratio * height / width), size) if width < height else (size, int(ratio * width / height))
