"""Where networks come from: torchvision, Hugging Face, or a function of the user's own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hapi.errors import InputError
from hapi.model.guess import declared_size
from hapi.model.wrappers import unwrapped

_SEED = 0  # of random weights
_USUAL = (224, 224)  # pixels
_NO_NETWORK = "pass --weights FILE.safetensors (weights='FILE.safetensors'), or none for random ones"
_NO_CODE = {"trust_remote_code": False}  # else whoever sits at the terminal is asked whether to run the folder's own


@dataclass(frozen=True)
class Source:
    """A network with its transform, and whether it ends with a classifier that is not part of the features."""

    name: str
    network: nn.Module
    transform: Any
    has_classifier: bool = True
    notes: tuple[str, ...] = ()


@contextmanager
def same_random_weights() -> Iterator[None]:
    """Inside, random initialisation gives the same weights in every process; the caller's generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


# -- torchvision ---------------------------------------------------------------------------------------------


def from_torchvision(name: str, published: bool) -> Source:
    """An image classifier of torchvision by its name there, with the transform of its weights' preset."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=4)
        hint = f"Did you mean {', '.join(close)}?" if close else "torchvision.models.list_models() names them."
        raise InputError(f"model 'torchvision:{name}': torchvision has no such image classifier. {hint}")
    enum = models.get_model_weights(name)
    presets = [enum.DEFAULT, *enum] if len(enum) else []  # type: ignore[attr-defined, call-overload, misc, unused-ignore]
    with same_random_weights(), warnings.catch_warnings():
        # googlenet and inception announce a future change of their random initialisation
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision")
        if published:
            if not presets:
                raise InputError(f"model 'torchvision:{name}': torchvision publishes no weights for it; {_NO_NETWORK}.")
            network = _published(name, presets[0])
        else:
            network = models.get_model(name, weights=None)
            if presets and hasattr(network, "transform_input"):
                # what torchvision sets for its weights: these two were trained with another normalisation
                network.transform_input = True
    size = declared_size(network)
    for preset in presets:
        transform = preset.transforms()
        if size is None or apply(transform, _blank(size)).shape[-2:] == torch.Size(size):
            return Source(name, network, transform)
    return Source(name, network, usual_transform(size), notes=(_usual_note(size),))


def _published(name: str, weights: Any) -> nn.Module:
    """The network with its published weights: a .pth file, read by the unpickler that cannot execute anything."""
    from torchvision import models

    try:
        with _tensors_only(), redirect_stdout(sys.stderr):  # the hub announces downloads on standard output
            return models.get_model(name, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:  # no network, an HTTP error, a wrong hash
        raise InputError(
            f"model 'torchvision:{name}': its weights {weights} could not be had from {weights.url} ({error}). "
            f"Without a network {_NO_NETWORK}."
        ) from error
    except UnpicklingError as error:
        raise InputError(
            f"model 'torchvision:{name}': the file of {weights} holds more than tensors; refused."
        ) from error


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Inside, torch reads files with its restricted unpickler, whatever a library asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# -- Hugging Face --------------------------------------------------------------------------------------------


def from_hugging_face(name: str, published: bool) -> Source:
    """An image classifier, or else an image encoder, from a model folder or the Hub, with its image processor."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model 'hf:{name}': Hugging Face transformers is not installed. Install the extra: "
            "pip install 'hapi-split[hf]'."
        ) from error
    with _hugging_face_errors(name, "configuration"):
        config = transformers.AutoConfig.from_pretrained(name, **_NO_CODE)
    architectures = config.architectures or []
    classifies = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and (
        not architectures or any("ForImageClassification" in a for a in architectures)
    )
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    if published:
        with _hugging_face_errors(name, "weights"), _without_bars():
            network, report = auto.from_pretrained(name, use_safetensors=True, output_loading_info=True, **_NO_CODE)
        missing = sorted(report["missing_keys"])
        if missing:
            raise InputError(
                f"model 'hf:{name}': its weights lack {', '.join(missing[:5])}"
                f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}, which would stay random. "
                "Take a checkpoint that was saved with them, or pass --weights none if random ones are meant."
            )
    else:
        with same_random_weights(), _hugging_face_errors(name, "configuration"):
            network = auto.from_config(config, **_NO_CODE)
    transform, notes = _processor(name, network)
    return Source(name.rstrip("/").rsplit("/", 1)[-1], network, transform, classifies, notes)


def _processor(name: str, network: nn.Module) -> tuple[Any, tuple[str, ...]]:
    """The image processor that comes with it; where there is none, a torchvision preset of the declared size."""
    import transformers
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    with _hugging_face_errors(name, "image processor"):
        try:
            return transformers.AutoImageProcessor.from_pretrained(name, **_NO_CODE), ()
        except (OSError, ValueError):
            if get_image_processor_config(name):  # it has one, which is not for us to replace
                raise
    size = declared_size(network)
    return usual_transform(size), (_usual_note(size),)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars: they would mix with those of the command that loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _hugging_face_errors(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
        raise InputError(
            f"model 'hf:{name}': its {what} could not be loaded ({lines[0].strip().rstrip('.')[:300]}). Give a folder "
            f"with config.json and model.safetensors, or a name on the Hub; without network or weights, {_NO_NETWORK}."
        ) from error


def features_of(result: Any) -> Tensor:
    """The tensor of features in what an encoder returns: its pooled output, else its last hidden state."""
    if isinstance(result, Tensor):
        return result
    for field in ("pooler_output", "last_hidden_state"):
        value = getattr(result, field, None)
        if isinstance(value, Tensor):
            return value.flatten(1) if field == "pooler_output" else value
    if isinstance(result, tuple | list) and result and isinstance(result[0], Tensor):
        return result[0]
    raise InputError(f"the network returns {type(result).__name__}, in which no tensor of features can be told.")


# -- the user's own ------------------------------------------------------------------------------------------


def from_factory(module: str, name: str) -> Source:
    """What a function without arguments returns: a module, or a module and its transform."""
    factory = _import_factory(module, name)
    with same_random_weights():
        made = factory()
    network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, nn.Module):
        raise InputError(f"model '{module}:{name}': it returned {type(network).__name__}, not a torch.nn.Module.")
    network = unwrapped(network)
    if transform is not None:
        return Source(name, network, transform)
    size = declared_size(network)
    return Source(name, network, usual_transform(size), notes=(_usual_note(size),))


def _import_factory(module: str, name: str) -> Callable[[], Any]:
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"model '{module}:{name}': {error}. Name a function of an importable module (is it installed, or on "
            "PYTHONPATH?), or use torchvision:NAME or hf:PATH_OR_NAME."
        ) from error
    if not callable(found):
        raise InputError(f"model '{module}:{name}': not a function. Name one that returns a torch.nn.Module.")
    return found


# -- transforms ----------------------------------------------------------------------------------------------


def usual_transform(size: tuple[int, int] | None) -> Any:
    """ImageNet's usual evaluation preset: resize to 256/224 of the size, centre crop, normalise.

    A size that is not square is resized to as it is.
    """
    from torchvision.transforms import v2
    from torchvision.transforms._presets import ImageClassification

    height, width = size or _USUAL
    if height == width:
        return ImageClassification(crop_size=height, resize_size=round(height * 256 / 224))
    return v2.Compose(
        [
            v2.Resize([height, width]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


def apply(transform: Any, image: Any) -> Tensor:
    """One input (C, H, W) from one PIL image, by a torchvision transform or a Hugging Face image processor."""
    result = transform(image, return_tensors="pt") if hasattr(transform, "preprocess") else transform(image)
    return result["pixel_values"][0] if hasattr(result, "keys") else result


def _blank(size: tuple[int, int]) -> Any:
    from PIL import Image

    return Image.new("RGB", (size[1] + 32, size[0] + 32))


def _usual_note(size: tuple[int, int] | None) -> str:
    height, width = size or _USUAL
    return f"no transform comes with it; images are prepared the usual ImageNet way at {height}x{width}"
