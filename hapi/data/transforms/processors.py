"""Hugging Face image processors as data: candidates from their settings, proven on probe images.

A processor's class may override any part of the work. So nothing is assumed from its name: each pipeline that its
settings suggest is compared with what the processor itself returns, bit for bit, on images of several shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from hapi.data.transforms.spec import TransformSpec
from hapi.errors import TransformError

_PROBE_SIZES = ((333, 250), (251, 330), (63, 48), (224, 224), (600, 257))
_PIXELS = "pixel_values"

Document = list[dict[str, Any]]


def is_processor(transform: Any) -> bool:
    """Whether it is an image processor of transformers, or a processor that holds one; nothing is imported."""
    return _image_processor(transform) is not None


def describe_processor(transform: Any) -> TransformSpec:
    """The pipeline that returns what `transform(image, return_tensors="pt")["pixel_values"][0]` returns, exactly."""
    processor = _image_processor(transform)
    name = type(processor).__name__
    expected = [_pixel_values(processor, image, name) for image in _probes()]
    for document in _candidates(processor, name):
        spec = TransformSpec.from_json(document)
        if _proven(spec, expected):
            return spec
    raise TransformError(f"image processor {name}: what it does with these settings has no portable equivalent.")


def _image_processor(transform: Any) -> Any | None:
    for candidate in (transform, getattr(transform, "image_processor", None)):
        for cls in type(candidate).__mro__:
            if cls.__module__.split(".")[0] == "transformers" and cls.__name__ == "ImageProcessingMixin":
                return candidate
    return None


def _candidates(processor: Any, name: str) -> Iterator[Document]:
    """Pipelines that its settings may mean, for either backend; the processor's own backend first."""
    backends = ["pil", "torchvision"]
    if getattr(processor, "backend", "pil") == "torchvision":
        backends.reverse()
    for backend in backends:
        for resizing in _resizings(processor, name, backend):
            yield [*resizing, *_cropping(processor, backend), *_scaling(processor, backend)]


def _resizings(processor: Any, name: str, backend: str) -> Iterator[Document]:
    """The first steps, up to a uint8 tensor: PIL-backed processors resize the image, the others the tensor."""
    to_tensor = {"name": "PILToTensor"}
    if not processor.do_resize:
        yield [to_tensor]
        return
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    mode = {"interpolation": int(getattr(processor, "resample", None) or Image.Resampling.BILINEAR)}
    for resize, crop in _sizes(size, mode, getattr(processor, "crop_pct", None)):
        cropping = [] if crop is None else [_center_crop(crop, crop, backend)]
        yield [resize, to_tensor, *cropping] if backend == "pil" else [to_tensor, resize, *cropping]


def _sizes(
    size: dict[str, int], mode: dict[str, int], crop_pct: float | None
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Resize steps that the size may mean, and the square that is cropped right after, if any."""

    def resize(*to: int) -> dict[str, Any]:
        return {"name": "Resize", "args": {"size": list(to), **mode}}

    def fit(short: int, long: int, within: str) -> dict[str, Any]:
        return {"name": "hf.FitResize", "args": {"short": short, "long": long, "within": within, **mode}}

    match size:
        case {"shortest_edge": short, "longest_edge": long}:
            yield fit(short, long, "edges"), None
        case {"shortest_edge": short}:
            if crop_pct is not None:  # the evaluation crop of ConvNeXt-like models
                yield resize(int(short / crop_pct)), short
                yield resize(short, short), None
            yield resize(short), None
        case {"max_height": height, "max_width": width}:
            yield fit(height, width, "box"), None
        case {"height": height, "width": width}:
            yield resize(height, width), None


def _cropping(processor: Any, backend: str) -> Document:
    if not getattr(processor, "do_center_crop", False):
        return []
    size = dict(processor.crop_size)
    return [_center_crop(size["height"], size["width"], backend)]


def _center_crop(height: int, width: int, backend: str) -> dict[str, Any]:
    rounding = "ceil" if backend == "pil" else "floor"
    return {"name": "hf.CenterCrop", "args": {"height": height, "width": width, "rounding": rounding}}


def _scaling(processor: Any, backend: str) -> Document:
    to_float = {"name": "ToDtype", "args": {"dtype": "float32", "scale": False}}
    factor = processor.rescale_factor if processor.do_rescale else None
    rescale = {"name": "hf.Rescale", "args": {"factor": factor, "double": backend == "pil"}}
    if not processor.do_normalize:
        return [to_float] if factor is None else [rescale]
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    first = to_float
    if factor is not None and backend == "torchvision":  # rescaling is folded into the constants, in float32
        mean, std = mean * (1.0 / factor), std * (1.0 / factor)
    elif factor is not None:
        first = rescale
    return [first, {"name": "Normalize", "args": {"mean": mean.tolist(), "std": std.tolist()}}]


def _probes() -> list[Image.Image]:
    """Images with fine detail in every channel, so that any difference in arithmetic shows."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _PROBE_SIZES]


def _pixel_values(processor: Any, image: Image.Image, name: str) -> tuple[Image.Image, torch.Tensor]:
    try:
        result = processor(image, return_tensors="pt")
    except Exception as error:  # a foreign object: anything may come out, and it is reported as this error's cause
        raise TransformError(f"image processor {name}: failed on an image of {image.size} pixels ({error}).") from error
    if set(result) != {_PIXELS} or len(result[_PIXELS]) != 1:
        raise TransformError(f"image processor {name}: returns {', '.join(result)}, not one image as {_PIXELS}.")
    return image, result[_PIXELS][0]


def _proven(spec: TransformSpec, expected: list[tuple[Image.Image, torch.Tensor]]) -> bool:
    try:
        return all(torch.equal(spec(image), tensor) and tensor.dtype == torch.float32 for image, tensor in expected)
    except TransformError:
        return False
