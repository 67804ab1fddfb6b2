"""Copies of modules that go on sharing tensors with the originals."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from hapi.errors import InputError


def twin(module: nn.Module, shared: dict[int, Any]) -> nn.Module:
    """A deep copy that holds what is in `shared`, by its id, in common with the original.

    Raises InputError for a module with something in it that cannot be copied.
    """
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # each thing that cannot be copied says so in its own way
        raise InputError(
            f"module {type(module).__name__} cannot be copied for its frozen twin ({type(error).__name__}: {error}). "
            "Keep what is no data, such as a lock or an open file, out of it, or give its class a __deepcopy__."
        ) from error
