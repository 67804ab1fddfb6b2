"""The networks of the baselines: from the model's own library, without HAPI, and without their last Linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def load_network(spec: str, weights: str) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A torchvision or Hugging Face classifier whose last Linear is nn.Identity(), and its transform."""
    kind, _, name = spec.partition(":")
    torch.manual_seed(0)  # random weights are those of seed 0
    if kind == "torchvision":
        from torchvision import models

        preset = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined, unused-ignore]
        network = models.get_model(name, weights=preset if weights == "DEFAULT" else None)
        transform = preset.transforms()
    elif kind == "hf":
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

        if weights == "DEFAULT":
            network = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
        else:
            network = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(name))
        transform = Processed(AutoImageProcessor.from_pretrained(name))
    else:
        raise ValueError(f"model {spec!r}: this script knows torchvision:NAME and hf:PATH_OR_NAME.")
    if weights not in ("DEFAULT", "none"):
        from safetensors.torch import load_model

        load_model(network, weights)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"model {spec!r}: it does not end with a Linear layer, which this script replaces.")
    owner, _, leaf = linear[-1].rpartition(".")
    setattr(network.get_submodule(owner), leaf, nn.Identity())
    return network.requires_grad_(False).eval(), transform


class Processed:
    """A Hugging Face image processor as a transform of one image."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


class Extractor:
    """The frozen backbone, run eagerly: (batch, ...) images -> (batch, features), which may train a head."""

    def __init__(self, backbone: nn.Module, device: torch.device, *, channels_last: bool = False) -> None:
        self.device = device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            features = self.backbone(images.to(self.device, non_blocking=True, memory_format=self.layout))
            features = (features if isinstance(features, Tensor) else features.logits).flatten(1)
        return features.clone()  # outside of the mode: what it made cannot be kept for a backward pass


class Features:
    """The backbone over the batches of a loader: (features, labels), counting what was read from a bucket."""

    def __init__(self, extract: Extractor, loader: Iterable[Any]) -> None:
        self.extract, self.loader = extract, loader
        self.bytes_received = self.requests = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, *sizes in self.loader:
            for size in sizes:
                self.bytes_received += int(size.sum())
                self.requests += len(size)
            yield self.extract(images), labels.to(self.extract.device, non_blocking=True)
