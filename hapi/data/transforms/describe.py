"""Reads a user's transform object into a TransformSpec, or says exactly what is in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torchvision import transforms as classic
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from hapi.data.transforms.processors import describe_processor, is_processor
from hapi.data.transforms.spec import TransformSpec
from hapi.data.transforms.steps import Step, step_from_json, step_from_object
from hapi.errors import TransformError

WAY_OUT = (
    'Use torchvision transforms or a Hugging Face image processor; with pushdown="none" any callable works, '
    "since it then runs on this machine only."
)


def describe_transform(transform: Any) -> TransformSpec:
    """The same transform as data.

    Accepts torchvision v2 and classic transforms, alone, in a Compose or an nn.Sequential; the presets of pretrained
    weights (`weights.transforms()`); Hugging Face image processors; a TransformSpec or its JSON form. TransformError
    names the part that cannot be written down (a lambda, a class of one's own, ...) and the way out.
    """
    if isinstance(transform, TransformSpec):
        return transform
    if isinstance(transform, list):
        return TransformSpec.from_json(transform)
    try:
        if is_processor(transform):
            return describe_processor(transform)
        # made anew from the description: it does what it says even if the user's object is changed later
        spec = TransformSpec.from_json(TransformSpec(_steps(transform)).to_json())
        _check_result(spec)
    except TransformError as error:
        raise TransformError(f"{error} {WAY_OUT}") from error
    return spec


def _steps(transform: Any) -> Iterator[Step]:
    if type(transform) in (v2.Compose, classic.Compose):
        for part in transform.transforms:
            yield from _steps(part)
    elif type(transform) is nn.Sequential:
        for part in transform:
            yield from _steps(part)
    elif type(transform) is ImageClassification:
        yield from _preset(transform)
    elif type(transform) not in (nn.Identity, v2.Identity):
        yield step_from_object(transform)


def _preset(preset: ImageClassification) -> Iterator[Step]:
    """What the preset's forward does, in the same functions of classic torchvision."""
    sampling = {"interpolation": preset.interpolation, "antialias": preset.antialias}
    yield step_from_json({"name": "classic.Resize", "args": {"size": preset.resize_size, **sampling}})
    yield step_from_json({"name": "classic.CenterCrop", "args": {"size": preset.crop_size}})
    yield step_from_json({"name": "classic.PILToTensor"})
    yield step_from_json({"name": "classic.ConvertImageDtype", "args": {"dtype": "float32"}})
    yield step_from_json({"name": "classic.Normalize", "args": {"mean": preset.mean, "std": preset.std}})


def _check_result(spec: TransformSpec) -> None:
    """Finds a pipeline that forgets to make a float tensor before any sample is read."""
    made = "an image"
    for step in spec.steps:
        if step.name == "ToTensor":
            made = "float32"
        elif step.name.endswith(("ToImage", "PILToTensor")):
            made = "uint8"
        elif step.name.endswith(("ToDtype", "ConvertImageDtype")) and made != "an image":
            made = step.args["dtype"]
        elif step.name.endswith("Normalize") and made in ("an image", "uint8"):
            raise TransformError(
                f"transform {step.name} is given {made}, it needs a float tensor. "
                "Put v2.ToImage() and v2.ToDtype(torch.float32, scale=True) before it."
            )
    if made != "float32":
        raise TransformError(
            f"transform ends with {made}, a model needs a float32 tensor. "
            "Add v2.ToImage() and v2.ToDtype(torch.float32, scale=True)."
        )
