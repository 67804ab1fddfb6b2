"""Trimmed pictures: whatever is left out, the transform gives the same to the last bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as classic
from torchvision.transforms import InterpolationMode, v2

from hapi.data import TransformSpec, decode_image, describe_transform, load_sample
from hapi.data import trimming as module
from hapi.data.images import Window
from hapi.data.transforms.parts import Box
from hapi.data.trimming import is_available, trim
from hapi.errors import ImageError

needs_library = pytest.mark.skipif(not is_available(), reason="no libturbojpeg on this machine (Debian: libturbojpeg0)")

END = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
PIPELINES = {
    "usual": [v2.Resize(64), v2.CenterCrop(56), *END],
    "bicubic": [v2.Resize(64, interpolation=InterpolationMode.BICUBIC), v2.CenterCrop((40, 60)), *END],
    "nearest": [v2.Resize(64, interpolation=InterpolationMode.NEAREST), v2.CenterCrop(32), *END],
    "lanczos": [v2.Resize((80, 60), interpolation=InterpolationMode.LANCZOS), v2.CenterCrop(32), *END],
    "larger": [v2.Resize(300), v2.CenterCrop(100), *END],
    "as a tensor": [v2.ToImage(), v2.Resize(64, antialias=True), v2.CenterCrop(56), v2.ToDtype(torch.float32, True)],
    "without antialias": [v2.PILToTensor(), v2.Resize(40, antialias=False), v2.CenterCrop(30), END[1]],
    "classic": [classic.Resize(64), classic.CenterCrop(56), classic.ToTensor()],
    "crop only": [v2.CenterCrop(50), *END],
    "two crops": [v2.RandomCrop(90), v2.Resize(48), v2.RandomCrop(32), *END],
    "augmented": [v2.RandomResizedCrop(48), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4), *END],
    "classic augmented": [classic.RandomResizedCrop(48), classic.RandomHorizontalFlip(), classic.ToTensor()],
    "grey": [v2.Grayscale(3), v2.Resize(64), v2.CenterCrop(56), *END],
    "blurred": [v2.GaussianBlur(3), v2.CenterCrop(50), *END],
    "padded": [v2.CenterCrop(400), v2.CenterCrop(20), *END],
    "padded at random": [v2.RandomCrop(64, padding=8), *END],
    "flipped before": [v2.RandomHorizontalFlip(), v2.RandomCrop(40), *END],
    "whole": [v2.Resize((56, 56)), *END],
}


def pipeline(name: str) -> TransformSpec:
    return describe_transform(v2.Compose(PIPELINES[name]))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth with some noise, so that every pixel matters and a JPEG of it is not much larger than a photograph's."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
    noise = generator.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.parametrize("name", PIPELINES)
@given(
    size=st.tuples(st.integers(100, 260), st.integers(100, 260)),
    index=st.integers(0, 50),
    outside=st.integers(0, 255),
)
def test_nothing_outside_of_the_part_is_read(name: str, size: tuple[int, int], index: int, outside: int) -> None:
    spec, image = pipeline(name), picture(*size)
    box = spec.part_read(*size, seed=3, epoch=1, index=index)
    assert 0 <= box.left < box.right <= size[0]
    assert 0 <= box.top < box.bottom <= size[1]
    other = Image.new("RGB", size, (outside, 255 - outside, 7))
    other.paste(image.crop(box), (box.left, box.top))
    wanted = spec(image, seed=3, epoch=1, index=index)
    assert torch.equal(spec(other, seed=3, epoch=1, index=index), wanted)


@pytest.mark.parametrize("name", ["usual", "classic", "crop only", "augmented", "as a tensor", "two crops"])
def test_the_part_is_no_larger_than_it_need_be(name: str) -> None:
    box = pipeline(name).part_read(240, 160, index=5)
    area = (box.right - box.left) * (box.bottom - box.top)
    assert area < 0.75 * 240 * 160


@pytest.mark.parametrize("name", ["blurred", "padded", "padded at random", "whole", "flipped before"])
def test_what_is_not_known_to_be_left_out_is_read(name: str) -> None:
    assert pipeline(name).part_read(240, 160, index=5) == Box(0, 0, 240, 160)


def test_draws_are_those_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pipeline("augmented")
    boxes = {spec.part_read(240, 160, seed=1, epoch=epoch, index=index) for epoch in (0, 1) for index in range(5)}
    assert len(boxes) == 10
    before = torch.random.get_rng_state()
    spec.part_read(240, 160)
    assert torch.equal(before, torch.random.get_rng_state())


@needs_library
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("name", PIPELINES)
@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(100, 330), st.integers(100, 330)),
    index=st.integers(0, 50),
    quality=st.sampled_from([40, 80, 95]),
    is_progressive=st.booleans(),
)
def test_a_trimmed_picture_gives_the_same(
    name: str, subsampling: str, size: tuple[int, int], index: int, quality: int, is_progressive: bool
) -> None:
    spec = pipeline(name)
    data = jpeg(picture(*size), quality=quality, subsampling=subsampling, progressive=is_progressive)
    part, window = trim(data, spec, seed=3, epoch=1, index=index)
    assert (part == data) == (window is None)
    wanted = load_sample(data, spec, seed=3, epoch=1, index=index)
    assert torch.equal(load_sample(part, spec, seed=3, epoch=1, index=index, window=window), wanted)


@needs_library
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_pictures_of_all_colours_stay_what_they_are(mode: str) -> None:
    spec, data = pipeline("usual"), jpeg(picture(320, 200).convert(mode))
    part, window = trim(data, spec)
    assert (window is None) == (mode == "CMYK")
    assert torch.equal(load_sample(part, spec, window=window), load_sample(data, spec))


@needs_library
def test_a_picture_becomes_smaller() -> None:
    data = jpeg(picture(500, 333), quality=90)
    part, window = trim(data, pipeline("usual"))
    assert window is not None
    assert window[2:] == (500, 333)
    assert len(part) < 0.75 * len(data)


@needs_library
def test_metadata_does_not_travel() -> None:
    data = jpeg(picture(300, 200), exif=b"Exif\0\0" + b"x" * 5000, comment=b"hidden")
    part, window = trim(data, pipeline("usual"))
    assert window is not None
    assert b"hidden" not in part


@needs_library
@pytest.mark.parametrize("what", ["cut off", "damaged", "no picture", "empty", "another format"])
def test_what_cannot_be_trimmed_stays_as_it_is(what: str) -> None:
    data = jpeg(picture(320, 200), quality=90)
    file = io.BytesIO()
    picture(320, 200).save(file, "PNG")
    data = {
        "cut off": data[: len(data) // 2],
        "damaged": data[: len(data) // 2] + b"\xff\xc4\x00\x03" + data[len(data) // 2 :],
        "no picture": b"\xff\xd8\xff" + b"nothing at all" * 20,
        "empty": b"",
        "another format": file.getvalue(),
    }[what]
    assert trim(data, pipeline("usual")) == (data, None)


@needs_library
@given(position=st.integers(0, 8000), value=st.integers(0, 255))
def test_a_picture_that_cannot_be_read_is_not_trimmed_to_one_that_can(position: int, value: int) -> None:
    whole = jpeg(picture(200, 140), quality=80)
    assume(position < len(whole))
    data, spec = bytearray(whole), pipeline("usual")
    data[position] = value
    part, window = trim(bytes(data), spec)
    if window is not None:
        assert load_sample(part, spec, window=window).shape == load_sample(bytes(data), spec).shape


def test_without_the_library_nothing_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_library", lambda: None)
    data = jpeg(picture(320, 200))
    assert not is_available()
    assert trim(data, pipeline("usual")) == (data, None)


@pytest.mark.parametrize(
    "window", [Window(0, 0, 10, 10), Window(-1, 0, 200, 200), Window(60, 0, 120, 120), Window(0, 0, 50_000, 50_000)]
)
def test_a_part_that_cannot_lie_there_is_refused(window: Window) -> None:
    with pytest.raises(ImageError):
        decode_image(jpeg(picture(80, 80)), window=window)


@needs_library
def test_real_photographs(shared_data: Path) -> None:
    files = sorted((shared_data / "images" / "flowers5_500px").rglob("*.jpg"))[:40]
    spec = describe_transform(v2.Compose([v2.Resize(256), v2.CenterCrop(224), *END]))
    left = whole = 0
    for file in files:
        data = file.read_bytes()
        part, window = trim(data, spec)
        assert torch.equal(load_sample(part, spec, window=window), load_sample(data, spec))
        left, whole = left + len(part), whole + len(data)
    assert left < 0.75 * whole
