"""How large a step can make an image, known before it runs: no request may fill a server's memory."""

from __future__ import annotations

from typing import Any

from torchvision.transforms.v2 import functional as F

from hapi.data.transforms.kernels import FitResize
from hapi.data.transforms.steps import Step
from hapi.errors import TransformError


def check_pixels(step: Step, image: Any, limit: int) -> None:
    """Raises TransformError if `step` could turn `image` into one of more than `limit` pixels."""
    height, width = F.get_size(image)
    out_height, out_width = _upper_bound(step.to_json(), height, width)
    if out_height * out_width > limit:
        raise TransformError(
            f"transform {step.name} would make {out_width}x{out_height} pixels of an image of {width}x{height}: more "
            f"than the {limit:,} that are allowed. Use a smaller size."
        )


def _upper_bound(step: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width that the step's output, and what it makes on the way, cannot exceed."""
    name, args = step["name"].removeprefix("classic."), step["args"]
    if name == "Resize":
        return _resized(args, height, width)
    if name == "hf.FitResize":
        return FitResize(**args).output_size(height, width)
    if name == "Pad":
        around = 2 * _largest(args["padding"])
        return height + around, width + around
    if name == "RandomCrop":  # pads on both sides when the image is smaller than the crop
        around = 2 * _largest(args["padding"]) + (2 * _largest(args["size"]) if args["pad_if_needed"] else 0)
        return height + around, width + around
    if name in ("CenterCrop", "RandomResizedCrop"):
        size = _largest(args["size"])
        return max(height, size), max(width, size)
    if name == "hf.CenterCrop":
        return max(height, args["height"]), max(width, args["width"])
    if name == "RandomRotation" and args["expand"]:
        return height + width, (height + width + 1) // 2  # a turned box: at most (h + w)^2 / 2
    if name == "RandomApply":
        for inner in args["transforms"]:
            after = _upper_bound(inner, height, width)
            height, width = max(height, after[0]), max(width, after[1])
    return height, width


def _resized(args: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    size, most = args["size"], args["max_size"]
    if size is None:
        return most, most
    if len(size) == 2:
        return size[0], size[1]
    scale = size[0] / min(height, width)
    if most is not None:
        scale = min(scale, most / max(height, width))
    return round(height * scale), round(width * scale)


def _largest(value: int | list[int] | None) -> int:
    if value is None:
        return 0
    return max(value) if isinstance(value, list) else value
