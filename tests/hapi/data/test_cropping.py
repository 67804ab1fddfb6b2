"""A resize that makes only what the crop after it keeps: the bits of both steps, whatever the sizes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as classic
from torchvision.transforms import InterpolationMode, v2

from hapi.data import TransformSpec, describe_transform
from hapi.data.transforms.cropping import exact_part, pillow_agrees
from hapi.data.transforms.parts import Box
from hapi.errors import TransformError

END = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
USUAL = [v2.Resize(256), v2.CenterCrop(224), *END]
FILTERS = ["bilinear", "bicubic", "box", "hamming", "lanczos"]
PILLOW_RESIZE = Image.Image.resize


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels).convert(mode)


def described(transforms: list[Any]) -> TransformSpec:
    return describe_transform(v2.Compose(transforms))


def part_of(spec: TransformSpec, image: object) -> Image.Image | None:
    pair = spec._cropped_resize
    return None if pair is None else pair(image)


def step_by_step(spec: TransformSpec, image: Image.Image) -> torch.Tensor:
    value: Any = image
    for step in spec.steps:
        value = step.transform(value)
    return torch.as_tensor(value)


def has_the_bits(spec: TransformSpec, image: Image.Image) -> bool:
    return torch.equal(spec(image), step_by_step(spec, image))


IN_PARTS = {
    "landscape": (500, 375),
    "portrait": (375, 500),
    "a third cut": (500, 333),
    "a third cut, upright": (333, 500),
    "square": (300, 300),
    "odd": (613, 457),
    "vertical pass first": (300, 900),
    "larger": (30, 20),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", IN_PARTS)
def test_a_part_has_the_bits_of_the_whole(name: str, mode: str) -> None:
    spec, image = described(USUAL), noise(*IN_PARTS[name], mode)
    part = part_of(spec, image)
    assert part is not None
    assert part.mode == mode
    assert part.size == (224, 224)
    assert has_the_bits(spec, image)


TURNED = [(500, 229), (500, 238), (500, 243), (500, 251), (500, 266), (640, 231), (640, 232), (640, 236)]
"""Sizes of photographs: the whole begins with the horizontal pass, a part with the vertical one."""


@pytest.mark.parametrize("size", TURNED)
def test_a_part_whose_passes_have_another_order_is_not_made(size: tuple[int, int]) -> None:
    spec, image = described(USUAL), noise(*size)
    assert has_the_bits(spec, image)
    assert has_the_bits(spec, image.transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("size", [(60, 150), (90, 100)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_one_side_may_stay_as_it_is(interpolation: str, size: tuple[int, int]) -> None:
    resize = v2.Resize((100, 60), interpolation=InterpolationMode(interpolation))
    spec = described([resize, v2.CenterCrop(40), *END])
    assert part_of(spec, noise(*size)) is not None
    assert has_the_bits(spec, noise(*size))


@pytest.mark.parametrize("interpolation", FILTERS)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    short=st.integers(20, 64),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_size_has_the_bits_of_torchvision(
    interpolation: str, size: tuple[int, int], short: int, crop: tuple[int, int]
) -> None:
    for to in (short, (40, short)):
        resize = v2.Resize(to, interpolation=InterpolationMode(interpolation))
        assert has_the_bits(described([resize, v2.CenterCrop(crop), *END]), noise(*size))


FIT = {"name": "hf.FitResize", "args": {"short": 64, "long": 90, "within": "edges", "interpolation": "bicubic"}}
CROP = {"name": "hf.CenterCrop", "args": {"height": 56, "width": 40, "rounding": "ceil"}}
RESCALE = {"name": "hf.Rescale", "args": {"factor": 1 / 255, "offset": 0, "double": True}}
PAIRED = {
    "classic": described([classic.Resize(64), classic.CenterCrop(40), classic.ToTensor()]),
    "most": described([v2.Resize(64, max_size=80), v2.CenterCrop(40), *END]),
    "after others": described([v2.Grayscale(), v2.RandomHorizontalFlip(1), v2.Resize(64), v2.CenterCrop(40), *END]),
    "crop of a tensor": described([v2.Resize(64), v2.ToImage(), v2.CenterCrop(40), END[1]]),
    "fitted": TransformSpec.from_json([FIT, {"name": "CenterCrop", "args": {"size": [40]}}, {"name": "ToTensor"}]),
    "processor": TransformSpec.from_json([FIT, {"name": "PILToTensor"}, CROP, RESCALE]),
}


@pytest.mark.parametrize("name", PAIRED)
def test_pipelines_that_resize_and_crop(name: str) -> None:
    assert part_of(PAIRED[name], noise(120, 90)) is not None
    assert has_the_bits(PAIRED[name], noise(120, 90))


APART = {
    "as a tensor": [v2.ToImage(), v2.Resize(64), v2.CenterCrop(40), END[1]],
    "nearest": [v2.Resize(64, interpolation=InterpolationMode.NEAREST), v2.CenterCrop(40), *END],
    "another step between": [v2.Resize(64), v2.RandomHorizontalFlip(1), v2.CenterCrop(40), *END],
    "padded": [v2.Resize(64), v2.CenterCrop((40, 100)), *END],
    "at random": [v2.Resize(64), v2.RandomCrop(64), *END],
    "the size that it has": [v2.Resize((90, 120)), v2.CenterCrop(40), *END],
    "all kept": [v2.Resize(64), v2.CenterCrop((64, 85)), *END],
    "no crop": [v2.Resize(64), *END],
}


@pytest.mark.parametrize("name", APART)
def test_others_are_run_step_by_step(name: str) -> None:
    spec, image = described(APART[name]), noise(120, 90)
    assert part_of(spec, v2.ToImage()(image) if name == "as a tensor" else image) is None
    torch.manual_seed(0)
    assert spec(image).ndim == 3


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "1", "I"])
def test_other_modes_are_run_step_by_step(mode: str) -> None:
    spec = described([v2.Resize(64), v2.CenterCrop(40), *END])
    image = noise(120, 90).convert("L").convert(mode) if mode == "I" else noise(120, 90, mode)
    assert part_of(spec, image) is None
    assert spec(image).shape[1:] == (40, 40)


def test_a_warning_that_antialias_is_not_heeded_remains() -> None:
    spec = described([v2.Resize(64, antialias=False), v2.CenterCrop(40), *END])
    with pytest.warns(UserWarning, match="antialias is ignored"):
        spec(noise(120, 90))


def test_the_step_that_fails_is_named() -> None:
    with pytest.raises(TransformError, match=r"hf\.CenterCrop failed on an image of 120x90"):
        TransformSpec.from_json([FIT, CROP])(noise(120, 90))
    with pytest.raises(TransformError, match="Resize failed on an image of 1000x1"):
        described([v2.Resize(10, max_size=20), v2.CenterCrop(5), *END])(noise(1000, 1))
    with pytest.raises(TransformError, match=r"Resize would make .* pixels"):
        described([v2.Resize(4000), v2.CenterCrop(5), *END])(noise(1000, 20))


@given(
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    resized=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    margins=st.tuples(*[st.floats(0, 0.5, exclude_max=True)] * 4),
    resample=st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]),
)
def test_edges_are_exact_in_single_precision(
    size: tuple[int, int],
    resized: tuple[int, int],
    margins: tuple[float, float, float, float],
    resample: Image.Resampling,
) -> None:
    (height, width), (left, top, right, bottom) = resized, margins
    kept = Box(int(left * width), int(top * height), width - int(right * width), height - int(bottom * height))
    part = exact_part(size, resized, kept, resample)
    if part is None:
        return
    box = part.box
    assert 0 <= box.left <= kept.left < kept.right <= box.right <= width
    assert 0 <= box.top <= kept.top < kept.bottom <= box.bottom <= height
    for edge, axis in ((box.left, 1), (box.right, 1), (box.top, 0), (box.bottom, 0)):
        assert np.float32(edge * size[axis] / resized[axis]) == Fraction(edge * size[axis], resized[axis])


@pytest.fixture
def fresh() -> Iterator[None]:
    pillow_agrees.cache_clear()
    yield
    pillow_agrees.cache_clear()


def by_width_first(image: Image.Image, size: tuple[int, int], resample: Any = None, box: Any = None) -> Image.Image:
    """Pillow before 13."""
    left, top, right, bottom = box or (0, 0, *image.size)
    narrow = PILLOW_RESIZE(image, (size[0], image.height), resample, (left, 0, right, image.height))
    return PILLOW_RESIZE(narrow, size, resample, (0, top, size[0], bottom))


def wholes_by_width_first(image: Image.Image, size: Any, resample: Any = None, box: Any = None) -> Image.Image:
    """A Pillow whose order is none that is known."""
    if box is None:
        return by_width_first(image, size, resample)
    flat = PILLOW_RESIZE(image, (image.width, size[1]), resample, (0, box[1], image.width, box[3]))
    return PILLOW_RESIZE(flat, size, resample, (box[0], 0, box[2], size[1]))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.usefixtures("fresh")
def test_this_pillow_makes_parts(interpolation: str) -> None:
    assert pillow_agrees(Image.Resampling[interpolation.upper()])


@pytest.mark.usefixtures("fresh")
def test_a_pillow_that_has_always_one_order_makes_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", by_width_first)
    spec, images = described(USUAL), [noise(*size) for size in ((333, 500), (500, 375), (300, 900))]
    assert all(part_of(spec, image) is not None for image in images)
    assert all(has_the_bits(spec, image) for image in images)


@pytest.mark.usefixtures("fresh")
def test_a_pillow_that_makes_parts_otherwise_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", wholes_by_width_first)
    spec, image = described(USUAL), noise(500, 333)
    assert part_of(spec, image) is None
    assert has_the_bits(spec, image)
