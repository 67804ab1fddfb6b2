"""Hugging Face image processors as data: the bits that the processor itself returns, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from hapi.data import TransformSpec, describe_transform
from hapi.errors import TransformError

TORCHVISION = tuple(map(int, torchvision.__version__.split(".")[:2]))
transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")

SQUARE = {"height": 48, "width": 48}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"size": {"height": 40, "width": 56}, "resample": Image.Resampling.BICUBIC}),
    ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False}),
    ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": Image.Resampling.LANCZOS}),
    ("DeiTImageProcessor", {"size": {"height": 60, "width": 60}, "crop_size": SQUARE}),
    ("BeitImageProcessor", {"size": SQUARE}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
    ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 97, "width": 400}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 52}, "crop_size": {"height": 45, "width": 47}}),
    ("SiglipImageProcessor", {"size": SQUARE}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("EfficientNetImageProcessor", {"size": SQUARE}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "rescale_offset": True, "include_top": False}),
    ("LevitImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 60}, "crop_size": SQUARE}),
    ("PvtImageProcessor", {"size": SQUARE}),
    ("PoolFormerImageProcessor", {"crop_size": SQUARE, "size": {"shortest_edge": 48}}),
    ("OwlViTImageProcessor", {"size": {"shortest_edge": 40, "longest_edge": 60}}),
]  # fmt: skip
BACKENDS = ["", "Pil"]


def made(name: str, backend: str, arguments: dict[str, Any]) -> Any:
    cls = getattr(transformers, name + backend, None)
    if cls is None:
        pytest.skip(f"this transformers has no {name}{backend}")
    return cls(**arguments)


def fresh_images() -> list[Image.Image]:
    """Not the images that candidates are proven on."""
    generator = np.random.default_rng(17)
    shapes = [(211, 140), (140, 211), (48, 48), (40, 30), (90, 300)]
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)) for width, height in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_returns_the_bits_of_the_processor(name: str, arguments: dict[str, Any], backend: str) -> None:
    processor = made(name, backend, arguments)
    if arguments.get("resample") == Image.Resampling.LANCZOS and not backend and TORCHVISION < (0, 27):
        pytest.skip("this torchvision cannot resize with LANCZOS, and the processor does something else")
    spec = describe_transform(processor)
    assert not spec.is_random
    again = TransformSpec.from_json(spec.to_json())
    for image in fresh_images():
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(spec(image), expected)
        assert torch.equal(again(image), expected)


def test_rescaling_before_resizing_is_recognised() -> None:
    processor = made("DINOv3ViTImageProcessor", "", {"size": SQUARE})
    spec = describe_transform(processor)
    assert [step.name for step in spec.steps] == ["PILToTensor", "hf.Rescale", "Resize", "Normalize"]
    image = fresh_images()[0]
    assert torch.equal(spec(image), processor(image, return_tensors="pt")["pixel_values"][0])


def test_a_processor_that_holds_an_image_processor_is_read() -> None:
    class Multimodal:
        image_processor = made("CLIPImageProcessor", "", {"size": {"shortest_edge": 32}, "crop_size": SQUARE})

    assert describe_transform(Multimodal()) == describe_transform(Multimodal.image_processor)


class Secretive(transformers.ViTImageProcessor):
    """Does something else than its settings say."""

    def rescale_and_normalize(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return super().rescale_and_normalize(images, *args, **kwargs).flip(-1)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Secretive(size=SQUARE), "image processor Secretive: .*no portable equivalent"),
        (transformers.ViTImageProcessor(size={"height": 5000, "width": 8}), "no portable equivalent"),
        (transformers.ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False), "no portable"),
        (transformers.ViltImageProcessor(), "returns .*pixel_mask"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(processor: Any, reason: str) -> None:
    with pytest.raises(TransformError, match=reason) as caught:
        describe_transform(processor)
    assert 'pushdown="none"' in str(caught.value)


def test_a_processor_inside_of_a_pipeline_is_refused_by_name() -> None:
    pipeline = v2.Compose([transformers.ViTImageProcessor(), v2.ToImage()])
    with pytest.raises(TransformError, match="ViTImageProcessor is not portable"):
        describe_transform(pipeline)
