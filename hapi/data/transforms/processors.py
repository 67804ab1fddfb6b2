"""Hugging Face image processors as data: candidates from their settings, proven on probe images.

A processor's class may override any part of the work. So nothing is assumed from its name: each pipeline that its
settings suggest is compared with what the processor itself returns, bit for bit, on images of several shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from hapi.data.transforms.spec import TransformSpec
from hapi.errors import TransformError

_PROBE_SIZES = ((333, 250), (251, 330), (63, 48), (224, 224), (600, 257))
_PIXELS = "pixel_values"
_TO_TENSOR: dict[str, Any] = {"name": "PILToTensor"}
_TO_FLOAT: dict[str, Any] = {"name": "ToDtype", "args": {"dtype": "float32", "scale": False}}

Document = list[dict[str, Any]]


def is_processor(transform: Any) -> bool:
    """Whether it is an image processor of transformers, or a processor that holds one; nothing is imported."""
    return _image_processor(transform) is not None


def describe_processor(transform: Any) -> TransformSpec:
    """The pipeline that returns what `transform(image, return_tensors="pt")["pixel_values"][0]` returns, exactly."""
    processor = _image_processor(transform)
    name = type(processor).__name__
    expected = [_pixel_values(processor, image, name) for image in _probes()]
    for document in _candidates(processor):
        spec = _proven(document, expected)
        if spec is not None:
            return spec
    raise TransformError(f"image processor {name}: what it does with these settings has no portable equivalent.")


def _image_processor(transform: Any) -> Any | None:
    for candidate in (transform, getattr(transform, "image_processor", None)):
        for cls in type(candidate).__mro__:
            if cls.__module__.split(".")[0] == "transformers" and cls.__name__ == "ImageProcessingMixin":
                return candidate
    return None


def _candidates(processor: Any) -> Iterator[Document]:
    """Pipelines that its settings may mean, for either backend; the processor's own backend first."""
    backends = ["pil", "torchvision"]
    if _setting(processor, "backend") == "torchvision":
        backends.reverse()
    for backend in backends:
        for resize, square in _resizings(processor):
            crop = [_center_crop(square, square, backend)] if square else []
            crop += _cropping(processor, backend)
            if backend == "pil":
                yield [*resize, _TO_TENSOR, *crop, *_scaling(processor, backend)]
            else:
                yield [_TO_TENSOR, *resize, *crop, *_scaling(processor, backend)]
                # some rescale before they resize
                yield [_TO_TENSOR, *_rescaling(processor, backend), *resize, *crop, *_normalizing(processor)]


def _resizings(processor: Any) -> Iterator[tuple[Document, int | None]]:
    """Resize steps that its size may mean, and the square that is cropped right after, if any."""
    if not _setting(processor, "do_resize"):
        yield [], None
        return
    mode = {"interpolation": int(_setting(processor, "resample") or Image.Resampling.BILINEAR)}

    def resize(*to: int) -> Document:
        return [{"name": "Resize", "args": {"size": list(to), **mode}}]

    def fit(short: int, long: int, within: str) -> Document:
        return [{"name": "hf.FitResize", "args": {"short": short, "long": long, "within": within, **mode}}]

    match _sizes(processor, "size"):
        case {"shortest_edge": short, "longest_edge": long}:
            yield fit(short, long, "edges"), None
        case {"shortest_edge": short}:
            crop_pct = _setting(processor, "crop_pct")
            if crop_pct:  # the evaluation crop of ConvNeXt-like models
                yield resize(int(short / crop_pct)), short
                yield resize(short, short), None
            yield resize(short), None
            yield resize(int((256 / 224) * short)), None  # the margin of LeViT-like models
        case {"max_height": height, "max_width": width}:
            yield fit(height, width, "box"), None
        case {"height": height, "width": width}:
            yield resize(height, width), None


def _cropping(processor: Any, backend: str) -> Document:
    match _sizes(processor, "crop_size") if _setting(processor, "do_center_crop") else {}:
        case {"height": height, "width": width}:
            return [_center_crop(height, width, backend)]
    return []


def _center_crop(height: int, width: int, backend: str) -> dict[str, Any]:
    rounding = "ceil" if backend == "pil" else "floor"
    return {"name": "hf.CenterCrop", "args": {"height": height, "width": width, "rounding": rounding}}


def _scaling(processor: Any, backend: str) -> Document:
    """From uint8 to the values that the model wants."""
    rescale, normalize = _rescaling(processor, backend), _normalizing(processor)
    fused = backend == "torchvision" and not _setting(processor, "rescale_offset")
    if rescale and normalize and fused:  # rescaling is folded into the constants, in float32
        scale = 1.0 / processor.rescale_factor
        mean, std = torch.tensor(processor.image_mean) * scale, torch.tensor(processor.image_std) * scale
        return [_TO_FLOAT, _normalize(mean, std), *normalize[1:], *_flipping(processor)]
    return [*(rescale or [_TO_FLOAT]), *normalize, *_flipping(processor)]


def _rescaling(processor: Any, backend: str) -> Document:
    if not _setting(processor, "do_rescale"):
        return []
    offset = -1 if _setting(processor, "rescale_offset") else 0
    args = {"factor": processor.rescale_factor, "offset": offset, "double": backend == "pil"}
    return [{"name": "hf.Rescale", "args": args}]


def _normalizing(processor: Any) -> Document:
    if not _setting(processor, "do_normalize"):
        return []
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    again = [_normalize(torch.zeros_like(mean), std)] if _setting(processor, "include_top") else []
    return [_normalize(mean, std), *again]


def _normalize(mean: torch.Tensor, std: torch.Tensor) -> dict[str, Any]:
    return {"name": "Normalize", "args": {"mean": mean.tolist(), "std": std.tolist()}}


def _flipping(processor: Any) -> Document:
    return [{"name": "hf.FlipChannels"}] if _setting(processor, "do_flip_channel_order") else []


def _setting(processor: Any, name: str) -> Any:
    return getattr(processor, name, None)


def _sizes(processor: Any, name: str) -> dict[str, int]:
    return {key: value for key, value in dict(_setting(processor, name) or {}).items() if value is not None}


def _probes() -> list[Image.Image]:
    """Images with fine detail in every channel, so that any difference in arithmetic shows."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _PROBE_SIZES]


def _pixel_values(processor: Any, image: Image.Image, name: str) -> tuple[Image.Image, torch.Tensor]:
    try:
        result = processor(image, return_tensors="pt")
    except Exception as error:  # a foreign object: anything may come out, and it is reported as this error's cause
        raise TransformError(f"image processor {name}: failed on an image of {image.size} pixels ({error}).") from error
    if not isinstance(result, Mapping) or set(result) != {_PIXELS} or len(result[_PIXELS]) != 1:
        made = ", ".join(result) if isinstance(result, Mapping) else type(result).__name__
        raise TransformError(f"image processor {name}: returns {made}, not one image as {_PIXELS}.")
    return image, result[_PIXELS][0]


def _proven(document: Document, expected: list[tuple[Image.Image, torch.Tensor]]) -> TransformSpec | None:
    """The pipeline, if it makes exactly the expected tensors."""
    try:
        spec = TransformSpec.from_json(document)
        exact = all(tensor.dtype == torch.float32 and torch.equal(spec(image), tensor) for image, tensor in expected)
    except TransformError:  # settings out of bounds, or an image that this candidate cannot treat
        return None
    return spec if exact else None
