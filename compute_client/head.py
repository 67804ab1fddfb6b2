"""Heads: made from a seed, written as safetensors with a JSON description beside it, read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from compute_client.files import write_whole
from hapi.errors import InputError

HeadKind = Literal["linear", "mlp"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
FORMAT = "hapi-head-1"
HIDDEN = 512
"""Width of the hidden layer of an `mlp` head, unless said otherwise."""


def check_kind(kind: str) -> None:
    """InputError if there is no such head."""
    if kind not in HEADS:
        raise InputError(f"head {kind!r}: say one of {', '.join(HEADS)}.")


def build_head(
    kind: HeadKind, feature_shape: tuple[int, ...], classes: int, *, seed: int, hidden: int = HIDDEN
) -> nn.Module:
    """A head from features (B, *feature_shape) to logits (B, classes).

    `linear` is `nn.Linear(F, classes)`, `mlp` is `nn.Sequential(nn.Linear(F, hidden), nn.ReLU(), nn.Linear(hidden,
    classes))`, with F the number of features; an `nn.Flatten()` comes first when a sample's features are not a vector.
    The parameters are PyTorch's default initialisation right after `torch.manual_seed(seed)`, on the CPU; the global
    random state is left as it was.
    """
    check_kind(kind)
    size = math.prod(feature_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear":
            layers: list[nn.Module] = [nn.Linear(size, classes)]
        else:
            layers = [nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    if len(feature_shape) != 1:
        layers.insert(0, nn.Flatten())
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def save_head(head: nn.Module, path: str | os.PathLike[str], description: Mapping[str, Any]) -> Path:
    """Writes `path` (safetensors) and, with its suffix replaced by .json, the description; the description's path.

    Either file is written whole or not at all.
    """
    target = Path(path)
    beside = target.with_suffix(".json")
    if beside == target:
        raise InputError(f"{target}: the head is written as safetensors. Give a name like head.safetensors.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_whole(target, save(tensors))
    document = json.dumps({"format": FORMAT, **description}, indent=2, allow_nan=False)
    write_whole(beside, document.encode())
    return beside


def load_head(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Reads what `save_head` wrote: the head, in eval mode, and its description. InputError for anything else."""
    source = Path(path)
    try:
        description = json.loads(source.with_suffix(".json").read_text("utf-8"))
        tensors = load_file(source)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{source}: not a head with its description beside it ({error}).") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{source.with_suffix('.json')}: not the description of a head ({FORMAT}).")
    try:
        head = build_head(
            description["head"],
            tuple(description["feature_shape"]),
            len(description["classes"]),
            seed=0,
            hidden=description["hidden"],
        )
        head.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source}: its tensors and its description do not belong together ({error}).") from error
    return head.eval(), description
