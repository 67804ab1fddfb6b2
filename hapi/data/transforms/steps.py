"""The transforms that may be named in a pipeline: an allow-list, with the arguments of each.

A plain name is the class of that name in torchvision.transforms.v2; `classic.` names are those of
torchvision.transforms, whose arithmetic differs in the last bits; `hf.` names are hapi.data.transforms.kernels.
Nothing else can be reached.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision import transforms as classic
from torchvision.transforms import v2

from hapi.data.transforms import arguments as arg
from hapi.data.transforms import kernels
from hapi.data.transforms.arguments import Argument
from hapi.errors import TransformError

MAX_STEPS = 64
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError, ZeroDivisionError)
"""What a transform raises for an image that it cannot treat."""

_SAMPLING = {"interpolation": arg.interpolation(), "antialias": arg.optional(arg.flag())}
_FILL = {"fill": arg.fill()}
_P = {"p": arg.probability()}
_BINS = {"num_magnitude_bins": arg.integer(1, 1000), "interpolation": arg.interpolation(), **_FILL}
_PADDING_MODE = {"padding_mode": arg.word("constant", "edge", "reflect", "symmetric")}
_JITTER = arg.optional(arg.either(arg.number(0), arg.interval()))
_ANGLE = arg.either(arg.number(), arg.interval())
_CENTER = {"center": arg.optional(arg.several(arg.number(), 2))}
_CHANNELS = arg.either(arg.number(), arg.several(arg.number(), 1, 3))

_PLAIN: dict[str, dict[str, Argument]] = {
    "CenterCrop": {"size": arg.size()},
    "ConvertImageDtype": {"dtype": arg.dtype()},
    "Grayscale": {"num_output_channels": arg.integer(1, 3)},
    "Normalize": {"mean": _CHANNELS, "std": _CHANNELS, "inplace": arg.flag()},
    "PILToTensor": {},
    "Pad": {"padding": arg.padding(), **_FILL, **_PADDING_MODE},
    "Resize": {"size": arg.optional(arg.size()), "max_size": arg.optional(arg.side()), **_SAMPLING},
}
_RANDOM: dict[str, dict[str, Argument]] = {
    "AutoAugment": {"policy": arg.policy(), "interpolation": arg.interpolation(), **_FILL},
    "ColorJitter": {"brightness": _JITTER, "contrast": _JITTER, "saturation": _JITTER, "hue": _JITTER},
    "GaussianBlur": {
        "kernel_size": arg.either(arg.integer(1, 255), arg.several(arg.integer(1, 255), 1, 2)),
        "sigma": arg.either(arg.number(0), arg.several(arg.number(0), 1, 2)),
    },
    "RandAugment": {"num_ops": arg.integer(0, 16), "magnitude": arg.integer(0, 999), **_BINS},
    "RandomAdjustSharpness": {"sharpness_factor": arg.number(0), **_P},
    "RandomAffine": {
        "degrees": _ANGLE,
        "translate": arg.optional(arg.several(arg.number(0, 1), 2)),
        "scale": arg.optional(arg.interval(1e-3, 1e3)),
        "shear": arg.optional(arg.either(arg.number(), arg.several(arg.number(), 2, 4))),
        "interpolation": arg.interpolation(),
        **_FILL,
        **_CENTER,
    },
    "RandomAutocontrast": _P,
    "RandomCrop": {
        "size": arg.size(),
        "padding": arg.optional(arg.padding()),
        "pad_if_needed": arg.flag(),
        **_FILL,
        **_PADDING_MODE,
    },
    "RandomEqualize": _P,
    "RandomErasing": {
        **_P,
        "scale": arg.interval(0, 1),
        "ratio": arg.interval(1e-6),
        "value": arg.either(arg.word("random"), arg.number(), arg.several(arg.number(), 1, 3)),
        "inplace": arg.flag(),
    },
    "RandomGrayscale": _P,
    "RandomHorizontalFlip": _P,
    "RandomInvert": _P,
    "RandomPerspective": {"distortion_scale": arg.number(0, 1), **_P, "interpolation": arg.interpolation(), **_FILL},
    "RandomPosterize": {"bits": arg.integer(0, 8), **_P},
    "RandomResizedCrop": {
        "size": arg.size(),
        "scale": arg.interval(1e-6, 1e3),
        "ratio": arg.interval(1e-6),
        **_SAMPLING,
    },
    "RandomRotation": {
        "degrees": _ANGLE,
        "interpolation": arg.interpolation(),
        "expand": arg.flag(),
        **_CENTER,
        **_FILL,
    },
    "RandomSolarize": {"threshold": arg.number(), **_P},
    "RandomVerticalFlip": _P,
    "TrivialAugmentWide": _BINS,
}
_V2_ONLY: dict[str, dict[str, Argument]] = {
    "RGB": {},
    "ToDtype": {"dtype": arg.dtype(), "scale": arg.flag()},
    "ToImage": {},
    "ToPureTensor": {},
}
_KERNELS: dict[type, dict[str, Argument]] = {
    kernels.CenterCrop: {"height": arg.side(), "width": arg.side(), "rounding": arg.word("floor", "ceil")},
    kernels.FitResize: {
        "short": arg.side(),
        "long": arg.side(),
        "within": arg.word("edges", "box"),
        "interpolation": arg.interpolation(),
    },
    kernels.FlipChannels: {},
    kernels.Rescale: {"factor": arg.number(), "offset": arg.number(), "double": arg.flag()},
}


@dataclass(frozen=True)
class Kind:
    """One allowed transform: its name, class and arguments, and whether it draws random numbers."""

    name: str
    cls: type
    arguments: Mapping[str, Argument]
    is_random: bool = False


class Step:
    """One transform of a pipeline: its name, all of its arguments in JSON form, and the object that does the work."""

    def __init__(self, kind: Kind, transform: Callable[[Any], Any]) -> None:
        self.name = kind.name
        self.is_random = kind.is_random
        self.transform = transform
        self.args = _read_attributes(kind, transform)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "args": self.args}


def step_from_object(transform: Any) -> Step:
    """The step that a torchvision transform is; TransformError if it is none of the allowed ones."""
    kind = _BY_CLASS.get(type(transform))
    if kind is None:
        known = ", ".join(sorted(name for name in KINDS if "." not in name))
        raise TransformError(f"transform {_described(transform)} is not portable; torchvision's that are: {known}.")
    return Step(kind, transform)


def step_from_json(document: Any) -> Step:
    """The step that {"name": ..., "args": {...}} says, every argument checked; TransformError names what is wrong."""
    name = document.get("name") if isinstance(document, dict) else None
    if not isinstance(name, str) or document.keys() - {"name", "args"}:
        raise TransformError('transform: each step is an object {"name": ..., "args": {...}} and nothing else.')
    given = document.get("args", {})
    kind = KINDS.get(name)
    if kind is None:
        close = difflib.get_close_matches(name[:80], KINDS, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are: {', '.join(sorted(KINDS))}."
        raise TransformError(f"transform {name[:80]!r} is unknown. {hint}")
    if not isinstance(given, dict) or given.keys() - kind.arguments.keys():
        known = ", ".join(kind.arguments) or "none"
        raise TransformError(f"transform {name}: its arguments are {known}; got {given!r:.200}.")
    made = {}
    for key, value in given.items():
        try:
            made[key] = kind.arguments[key].make(kind.arguments[key].read(value))
        except ValueError as error:
            raise TransformError(f"transform {name}: {key} {error}.") from error
    try:
        return Step(kind, kind.cls(**made))
    except (TypeError, ValueError) as error:
        raise TransformError(f"transform {name}: {error}.") from error


def _read_attributes(kind: Kind, transform: Any) -> dict[str, Any]:
    """The arguments that would make this very object, in JSON form."""
    args = {}
    for key, argument in kind.arguments.items():
        value = getattr(transform, key)
        if kind.cls is v2.RandomCrop and key == "padding" and value is not None:
            left, right, top, bottom = value
            value = [left, top, right, bottom]
        elif kind.cls is v2.RandomErasing and key == "value" and value is None:
            value = "random"
        elif value is None and kind.cls is classic.ColorJitter:
            continue
        try:
            args[key] = argument.read(value)
        except ValueError as error:
            raise TransformError(f"transform {_described(transform)} is not portable: {key} {error}.") from error
    return args


def _nested() -> Argument:
    """The steps inside of RandomApply, as JSON or as transforms."""

    def read(value: Any) -> list[dict[str, Any]]:
        items = list(value) if isinstance(value, list | tuple | nn.ModuleList) else []
        if not 1 <= len(items) <= MAX_STEPS:
            raise ValueError(f"must be a list of 1 to {MAX_STEPS} transforms")
        steps = [step_from_json(item) if isinstance(item, dict) else step_from_object(item) for item in items]
        if any(step.name.endswith("RandomApply") for step in steps):
            raise ValueError("must not hold another RandomApply")
        return [step.to_json() for step in steps]

    return Argument(read, lambda steps: [step_from_json(step).transform for step in steps])


def _described(transform: Any) -> str:
    kind = transform if isinstance(transform, type) else type(transform)
    name = getattr(transform, "__qualname__", kind.__qualname__)
    return f"{getattr(transform, '__module__', kind.__module__)}.{name}"


def _kinds() -> dict[str, Kind]:
    kinds = [Kind("ToTensor", classic.ToTensor, {})]  # v2's is the same function behind a deprecation warning
    for names, is_random in ((_PLAIN, False), (_RANDOM, True)):
        for name, params in names.items():
            kinds.append(Kind(name, getattr(v2, name), params, is_random))
            kinds.append(Kind(f"classic.{name}", getattr(classic, name), params, is_random))
    some = {"transforms": _nested(), "p": arg.probability()}
    kinds += [Kind("RandomApply", v2.RandomApply, some, True)]
    kinds += [Kind("classic.RandomApply", classic.RandomApply, some, True)]
    kinds += [Kind(name, getattr(v2, name), params) for name, params in _V2_ONLY.items()]
    kinds += [Kind(f"hf.{cls.__name__}", cls, params) for cls, params in _KERNELS.items()]
    return {kind.name: kind for kind in kinds}


KINDS = _kinds()
_BY_CLASS = {kind.cls: kind for kind in KINDS.values()} | {v2.ToTensor: KINDS["ToTensor"]}
