"""Filling a network from a safetensors file, strictly: data that cannot execute, names and shapes checked first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from hapi.errors import InputError

_COUNTER = (
    "num_batches_tracked"  # BatchNorm's own count of training steps; converters drop it, inference never reads it
)


def load_weights(network: nn.Module, path: str | Path, *, unused: Collection[str] = ()) -> list[str]:
    """Copies every tensor of the file into `network`; answers the names that the file may lack and did lack.

    The file must have exactly the network's names and shapes. It may lack tied duplicates, BatchNorm's step counters
    and whatever belongs to the modules named in `unused` (auxiliary classifiers that inference never calls).
    Raises InputError naming what is missing, unexpected or of another shape, before any tensor is read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights {str(path)!r}: no such file. Give a .safetensors file, DEFAULT or none.")
    expected = network.state_dict()
    try:
        with safe_open(path, framework="pt") as stored:
            names = set(stored.keys())
            absent = _check_names(network, path, names, expected, unused)
            wrong = [
                f"{name} is {shape}, not {tuple(expected[name].shape)}"
                for name in sorted(names)
                if (shape := tuple(stored.get_slice(name).get_shape())) != tuple(expected[name].shape)
            ]
            if wrong:
                raise InputError(
                    f"weights {str(path)!r} do not fit {type(network).__name__}: {_some(wrong)}. "
                    "Take the file of this architecture, with the same number of classes."
                )
            with torch.no_grad():
                for name in names:
                    expected[name].copy_(stored.get_tensor(name))
    except SafetensorError as error:
        raise InputError(
            f"weights {str(path)!r}: not a safetensors file ({error}). Convert other formats with "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from error
    return absent


def _check_names(
    network: nn.Module, path: Path, names: set[str], expected: dict[str, torch.Tensor], unused: Collection[str]
) -> list[str]:
    present = {expected[name].data_ptr() for name in names & expected.keys()}
    absent = [name for name in expected if name not in names]
    missing = [
        name
        for name in absent
        if not name.endswith(_COUNTER)
        and not any(name.startswith(f"{module}.") for module in unused)
        and (expected[name].numel() == 0 or expected[name].data_ptr() not in present)
    ]
    unexpected = sorted(names - expected.keys())
    if missing or unexpected:
        said = [f"missing {_some(missing)}" if missing else "", f"unexpected {_some(unexpected)}" if unexpected else ""]
        raise InputError(
            f"weights {str(path)!r} do not fit {type(network).__name__}: {'; '.join(part for part in said if part)}. "
            "Take the file of this architecture, with the names of its own state_dict."
        )
    return absent


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
