"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT_TEST_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Tests run on small machines, several at once: one thread each keeps them from fighting."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photographs and pretrained weights, or a skip that says how to have it."""
    folder = Path(os.environ.get("HAPI_TEST_DATA", DEFAULT_TEST_DATA))
    if not (folder / "images" / "flowers5").is_dir():
        pytest.skip(f"no real photographs and weights at {folder}; set HAPI_TEST_DATA to a folder that has them")
    return folder
