"""Photo-like labelled pictures from numbers alone, for machines without data.

A picture is a heap of leaves: textured shapes of power-law sizes that hide one another, under uneven light, slightly
blurred and grainy. Such heaps share with photographs the 1/f spectrum, sharp edges between smooth regions, and
objects at all scales (the dead leaves model: Lee, Mumford and Huang, "Occlusion models for natural images", 2001).
A class prefers one palette, one shape and one grain; every picture also holds leaves of other kinds, so that a class is
learnable, not obvious.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hapi.errors import InputError

DEFAULT_SIZE = (500, 375)
MAX_SIDE = 4096
QUALITY = 93  # JPEG; with the grain below some 100 kB at the default size

_PALETTES = ("amber", "teal", "violet", "moss", "coral", "azure", "rose", "lime", "plum", "gold")
_HUES = (0.09, 0.49, 0.75, 0.27, 0.02, 0.57, 0.93, 0.20, 0.84, 0.14)
_OWN_COLOUR, _OWN_SHAPE = 0.45, 0.7  # share of a picture's leaves that look like its class
_LEAVES = 260
_SMALLEST, _LARGEST = 0.02, 0.28  # radius of a leaf, in units of the picture's longer side
_GRAIN = 0.035

Floats = np.ndarray


@dataclass(frozen=True)
class Look:
    """What the pictures of a class have in common; it depends on the class alone, not on seed or number of classes."""

    name: str
    hue: float
    shape: str
    stripes: float
    """Waves of the grain across the picture."""
    angle: float


def look(number: int) -> Look:
    """The class with this number, 0 to MAX_CLASSES - 1."""
    palette = number % len(_PALETTES)
    shape = (number + number // 30) % len(_SHAPES)  # 10 palettes and 6 shapes meet again after 30
    name = list(_SHAPES)[shape]
    return Look(f"{_PALETTES[palette]}-{name}", _HUES[palette], name, 9 + 7 * (number % 5), math.pi * (number % 7) / 7)


def synth_image(index: int, classes: int, seed: int, size: tuple[int, int] = DEFAULT_SIZE) -> tuple[str, bytes]:
    """The name of the class and the JPEG bytes of picture `index`; the same for the same arguments.

    Every fourth picture is upright, and sizes vary by a tenth, as in a photo collection. InputError for impossible
    arguments.
    """
    check_arguments(classes, size)
    rng = np.random.default_rng([seed, index])
    kind = look(index % classes)
    scale = rng.uniform(0.9, 1.0)
    width, height = (max(8, round(side * scale)) for side in (size if index % 4 else size[::-1]))
    pixels = _picture(rng, kind, width, height)
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.5))
    grainy = np.asarray(image, np.float32) + rng.normal(0, 255 * _GRAIN, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return kind.name, buffer.getvalue()


def synth_key(index: int, name: str) -> str:
    """Where a picture is stored: a folder per class."""
    return f"{name}/{index:07d}.jpg"


def check_arguments(classes: int, size: tuple[int, int]) -> None:
    """InputError for a number of classes or a size that cannot be made."""
    if not 1 <= classes <= MAX_CLASSES:
        raise InputError(f"{classes} classes: there are 1 to {MAX_CLASSES} kinds of pictures.")
    if not all(16 <= side <= MAX_SIDE for side in size):
        raise InputError(f"pictures of {size[0]}x{size[1]} pixels: give sides of 16 to {MAX_SIDE}.")


def _picture(rng: np.random.Generator, kind: Look, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3)."""
    leaf = _heap(rng, kind, width, height)
    colour = _colours(rng, kind)[leaf]
    grain = _grain(rng, kind, width, height)
    # each leaf shows another part of the grain, and its own slope of light
    shift = rng.integers(0, (height, width), (_LEAVES + 1, 2))[leaf]
    y, x = np.mgrid[0:height, 0:width]
    texture = grain[(y + shift[..., 0]) % height, (x + shift[..., 1]) % width]
    slope = rng.normal(0, 0.25, (_LEAVES + 1, 2)).astype(np.float32)[leaf]
    shade = slope[..., 0] * (y / height - 0.5) + slope[..., 1] * (x / width - 0.5)
    light = 1 + 0.18 * _clouds(rng, width, height, octaves=3)
    lit = colour * ((1 + 0.22 * texture + shade) * light)[..., None]
    exposure = rng.uniform(0.8, 1.15)
    return np.clip(lit * (exposure * 255), 0, 255).astype(np.uint8)


def _heap(rng: np.random.Generator, kind: Look, width: int, height: int) -> np.ndarray:
    """Per pixel the number of the leaf that is seen there; 0 is the ground. Later leaves hide earlier ones."""
    canvas = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    # the density of radii falls with their third power: the law that makes heaps look alike at every scale
    u = rng.uniform(0, 1, _LEAVES)
    radii = (_SMALLEST**-2 + u * (_LARGEST**-2 - _SMALLEST**-2)) ** -0.5 * max(width, height)
    radii[: _LEAVES // 2] = np.sort(radii[: _LEAVES // 2])[::-1]  # the largest lie below
    for number, radius in enumerate(radii, start=1):
        own = rng.uniform() < _OWN_SHAPE
        shape = kind.shape if own else str(rng.choice(list(_SHAPES)))
        centre = rng.uniform((0, 0), (width, height))
        outline = _SHAPES[shape](rng) * radius + centre
        draw.polygon([tuple(point) for point in outline.tolist()], fill=number)
    return np.asarray(canvas)


def _colours(rng: np.random.Generator, kind: Look) -> Floats:
    """Linear colours of ground and leaves, float32 (leaves + 1, 3), mostly of the class's palette."""
    count = _LEAVES + 1
    hue = np.where(rng.uniform(size=count) < _OWN_COLOUR, rng.normal(kind.hue, 0.04, count), rng.uniform(size=count))
    saturation, value = rng.beta(3, 3, count), rng.uniform(0.2, 0.95, count)
    rows = [colorsys.hsv_to_rgb(h % 1.0, s, v) for h, s, v in zip(hue, saturation, value, strict=True)]
    return np.array(rows, np.float32)


def _grain(rng: np.random.Generator, kind: Look, width: int, height: int) -> Floats:
    """A texture of warped stripes in clouds, float32 (height, width), around zero."""
    clouds = _clouds(rng, width, height, octaves=7)
    angle = kind.angle + rng.normal(0, 0.12)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(width, height)
    along = (x * math.cos(angle) + y * math.sin(angle)) * kind.stripes * rng.uniform(0.85, 1.15)
    return np.sin(2 * math.pi * along + 2.5 * clouds) * 0.7 + clouds * 0.8


def _clouds(rng: np.random.Generator, width: int, height: int, octaves: int) -> Floats:
    """Noise with a 1/f spectrum: as much contrast in every octave; float32 (height, width), about unit variance."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 2 << octave
        small = rng.standard_normal((min(cells, height), min(cells, width)), np.float32)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return total / math.sqrt(octaves)


def _turned(points: Floats, rng: np.random.Generator) -> Floats:
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, -sin], [sin, cos]])


def _around(count: int) -> Floats:
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disk(rng: np.random.Generator) -> Floats:
    return _turned(_around(24) * (1, rng.uniform(0.75, 1)), rng)


def _shard(rng: np.random.Generator) -> Floats:
    return _turned(_around(3) * rng.uniform(0.7, 1.4, (3, 1)), rng)


def _blade(rng: np.random.Generator) -> Floats:
    return _turned(_around(16) * (1.9, rng.uniform(0.16, 0.26)), rng)


def _brick(rng: np.random.Generator) -> Floats:
    return _turned(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (1.1, rng.uniform(0.4, 0.6)), rng)


def _star(rng: np.random.Generator) -> Floats:
    return _turned(_around(10) * np.where(np.arange(10) % 2, 0.45, 1.25)[:, None], rng)


def _wave(rng: np.random.Generator) -> Floats:
    lobes = int(rng.integers(5, 8))
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return _turned(_around(48) * (0.95 + 0.3 * np.sin(lobes * angles))[:, None], rng)


_SHAPES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "disks": _disk,
    "shards": _shard,
    "blades": _blade,
    "bricks": _brick,
    "stars": _star,
    "waves": _wave,
}
MAX_CLASSES = len(_PALETTES) * len(_SHAPES)


def looks(classes: int) -> Iterator[Look]:
    """The first `classes` classes."""
    return map(look, range(classes))
