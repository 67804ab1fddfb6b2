"""The packages of others that baselines need: not installed with HAPI, so their absence has a sentence of its own."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from hapi.errors import HapiError

EXTRA = "hapi-split[peers]"


class PeerMissingError(HapiError):
    """A system that HAPI is compared with is not installed."""

    kind = "peer-missing"


def check_installed(package: str) -> None:
    """PeerMissingError says how to install a package that is not there; nothing is imported."""
    if find_spec(package) is None:
        raise PeerMissingError(f"{package} is not installed. Install it with: uv pip install '{EXTRA}'")


def required(package: str) -> ModuleType:
    """The imported package; PeerMissingError as above."""
    check_installed(package)
    return import_module(package)
