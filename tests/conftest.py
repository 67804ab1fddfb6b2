"""Fixtures that every room's tests share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from benchmarks.objectstore import Endpoint

# The same examples in every run, so that a red run tells of the change; HYPOTHESIS_PROFILE=explore draws new ones.
# No deadline: it is a timed assertion, and fails where other work runs on the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

DEFAULT_TEST_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Tests run on small machines, several at once: one thread each keeps them from fighting."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered between runs is not the user's, nor another test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photographs and pretrained weights, or a skip that says how to have it."""
    folder = Path(os.environ.get("HAPI_TEST_DATA", DEFAULT_TEST_DATA))
    if not (folder / "images" / "flowers5").is_dir():
        pytest.skip(f"no real photographs and weights at {folder}; set HAPI_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A real S3 server with one fresh data folder, or a skip that says why this machine has none."""
    from benchmarks.installing import ObjectStoreError
    from benchmarks.objectstore import object_store

    with contextlib.ExitStack() as stack:
        try:
            endpoint = stack.enter_context(object_store(tmp_path_factory.mktemp("object-store")))
        except ObjectStoreError as error:
            pytest.skip(f"no S3 server on this machine: {error}")
        yield endpoint
