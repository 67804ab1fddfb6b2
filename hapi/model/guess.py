"""An input that an image model accepts, told from the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hapi.errors import InputError

_USUAL_SIZE = 224  # pixels; what ImageNet classifiers are trained with, and what those with pooling accept


def guess_example(model: nn.Module) -> tuple[Tensor, ...]:
    """Random images (2, C, H, W) on the model's device and in its dtype, the same at every call.

    Channels come from the first convolution, the size from `image_size` of the model or its configuration, else 224.
    Raises InputError for a model without a 2-D convolution.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise InputError(
            f"model {type(model).__name__}: it has no 2-D convolution, so its input cannot be told. Pass example=, a "
            "tensor it accepts with the samples first (or a tuple of tensors)."
        )
    height, width = declared_size(model) or (_USUAL_SIZE, _USUAL_SIZE)
    weight = first.weight
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, first.in_channels, height, width, generator=generator, device="cpu")
    return (images.to(device=weight.device, dtype=weight.dtype),)


def declared_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) in pixels that a model or its configuration declares as `image_size`; None if it does not."""
    for owner in (getattr(model, "config", None), model):
        size: Any = getattr(owner, "image_size", None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None
