"""`load_model`: a pretrained network by name, divided into a frozen feature extractor and its own classifier."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hapi.errors import InputError
from hapi.model.boundary.division import divide, whole
from hapi.model.boundary.parts import Backbone, Head
from hapi.model.wrappers import bare
from hapi.model.zoo import sources
from hapi.model.zoo.weights import load_weights

log = logging.getLogger(__name__)

DEFAULT = "DEFAULT"
NONE = "none"


@dataclass(frozen=True)
class LoadedModel:
    """A network made ready for feature extraction.

    `backbone` is frozen, in eval mode, and gives features (B, feature_size); `head` is the network's own classifier,
    from the same features if those needed no pooling, else None. `transform` turns a PIL image into one input.
    `example` is a seeded random input (2, C, H, W). `notes` says what had to be assumed.
    """

    name: str
    network: nn.Module = field(repr=False)
    backbone: Backbone = field(repr=False)
    head: Head | None = field(repr=False)
    transform: Any = field(repr=False)
    example: Tensor = field(repr=False)
    feature_size: int
    notes: tuple[str, ...] = ()


def load_model(spec: str, weights: str | None = DEFAULT) -> LoadedModel:
    """Loads the network that `spec` names and takes its final classifier off.

    `spec`: `torchvision:NAME`, `hf:PATH_OR_NAME` (Hugging Face, needs the extra `hf`), or `package.module:factory`, a
    function without arguments that returns a module, or a module and its transform. `weights`: `DEFAULT`, those that
    the library publishes (for a factory: those it gives); `none`, random ones that are the same in every process; or a
    safetensors file that fits exactly. The transform is the architecture's own preset also when weights come from a
    file. The backbone is all that runs before the last module with parameters; feature maps (B, C, H, W) and token
    sequences (B, N, C) are averaged to (B, C).

    Raises InputError for unknown names, weights that are absent or do not fit, and networks that cannot be divided.
    """
    kind, _, name = spec.partition(":")
    if not name or not kind:
        raise InputError(
            f"model {spec!r}: say torchvision:NAME, hf:PATH_OR_NAME or package.module:factory, "
            "for example torchvision:resnet18."
        )
    weights = NONE if weights is None else weights
    loader = {"torchvision": sources.from_torchvision, "hf": sources.from_hugging_face}.get(kind)
    published = weights == DEFAULT
    source = loader(name, published) if loader else sources.from_factory(kind, name)
    with bare(source.network) as network:
        return _loaded(spec, weights, source, network.eval())


def _loaded(spec: str, weights: str, source: sources.Source, network: nn.Module) -> LoadedModel:
    example = _example(spec, source.transform, network)
    order = _call_order(spec, network, example)
    notes = list(source.notes)
    if weights not in (DEFAULT, NONE):
        used = set(order)
        unused = [n for n, m in network.named_modules() if n and not any(s in used for s in _subtree(n, m))]
        absent = load_weights(network, weights, unused=unused)
        log.debug("%s: %d tensors are not in %s and not needed", spec, len(absent), weights)
    backbone, head = _divide(network, order, example, source.has_classifier)
    features = backbone(example)
    if features.ndim != 2:
        backbone = backbone.then(average_positions)
        if features[0].numel() > features.shape[1]:
            notes.append(f"features {tuple(features.shape[1:])} are averaged over their positions")
        features, head = backbone(example), None
    for note in notes:
        log.info("%s: %s", spec, note)
    return LoadedModel(
        source.name, network, backbone, head, source.transform, example, int(features.shape[1]), tuple(notes)
    )


def average_positions(features: Tensor) -> Tensor:
    """(B, C, H, W) or (B, N, C) to (B, C), by the mean over places or tokens; any other shape is flattened."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features.flatten(1)


def _divide(
    network: nn.Module, order: list[str], example: Tensor, has_classifier: bool
) -> tuple[Backbone, Head | None]:
    """Everything is frozen but the classifier, for as long as split looks at it."""
    network.requires_grad_(False)
    if not has_classifier:
        return whole(network, example=example).then(sources.features_of), None
    classifier = network.get_submodule(order[-1])
    classifier.requires_grad_(True)
    try:
        return divide(network, example=example, follow_training=False)
    finally:
        classifier.requires_grad_(False)


def _call_order(spec: str, network: nn.Module, example: Tensor) -> list[str]:
    """Names of the modules with parameters of their own, in the order in which the forward pass calls them."""
    order: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    owners = [(name, module) for name, module in network.named_modules() if any(True for _ in module.parameters(False))]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in owners]
    try:
        with torch.no_grad():
            network(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"model {spec!r}: it does not accept its own transform's output {tuple(example.shape)} ({error}). "
            "Only networks from one image tensor to one result can be loaded by name; pass others as modules."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        raise InputError(f"model {spec!r}: no module with parameters is called, so there is nothing to extract with.")
    return order


def _example(spec: str, transform: Any, network: nn.Module) -> Tensor:
    """Two random images of the shape and dtype that the transform gives, the same at every call."""
    try:
        one = sources.apply(transform, Image.new("RGB", (320, 256)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"model {spec!r}: its transform does not work on a PIL image ({error}).") from error
    parameter = next(network.parameters(), one)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *one.shape, generator=generator, device="cpu").to(parameter.device, parameter.dtype)


def _subtree(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{inner}" if inner else name for inner, _ in module.named_modules()]
