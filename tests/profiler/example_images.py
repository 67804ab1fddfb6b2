"""A folder of small noise images, and a network for them, for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

SIDE = 16


def jpeg(seed: int) -> bytes:
    """A 30 x 20 JPEG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, "JPEG")
    return output.getvalue()


def write_folder(folder: Path, count: int = 10) -> Path:
    """`count` images in two classes."""
    for index in range(count):
        place = folder / ("cat" if index < count // 2 else "dog") / f"{index}.jpg"
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(jpeg(index))
    return folder


def transform() -> v2.Compose:
    return v2.Compose([v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def network() -> nn.Module:
    """A backbone of a few layers, from (B, 3, 16, 16) to (B, 8)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers).eval()


def model() -> tuple[nn.Module, v2.Compose]:
    """The network with a classifier, and its transform: a factory for `hapi profile`."""
    return nn.Sequential(*network(), nn.Linear(8, 2)), transform()
