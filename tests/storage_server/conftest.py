"""A small dataset, captured awkward models, and servers over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from awkward_models import SIZE, Archive, Residual, TwoInputs, Wide, make_archive
from fastapi.testclient import TestClient
from PIL import Image
from torchvision.transforms import v2

from hapi.data import TransformSpec, describe_transform
from hapi.settings import StoreSettings
from storage_server.http.app import app_of
from storage_server.scheduling.rates import Rates
from storage_server.service import Service
from storage_server.settings import ServerSettings

GOOD_PER_CLASS = 6


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six photos, and one file in class b that is no image: 13 samples, the last one bad."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(GOOD_PER_CLASS):
            pixels = noise.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "b" / "broken.jpg").write_bytes(b"no image at all")
    return root


@pytest.fixture(scope="session")
def transform() -> TransformSpec:
    return describe_transform(
        v2.Compose([v2.ToImage(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    )


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(Residual(), tmp_path_factory.mktemp("archive") / "residual.hapi")


@pytest.fixture(scope="session")
def wide_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(Wide(), tmp_path_factory.mktemp("archive") / "wide.hapi")


@pytest.fixture(scope="session")
def two_inputs_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(TwoInputs(), tmp_path_factory.mktemp("archive") / "two.hapi", inputs=2)


MakeService = Callable[..., Service]


@pytest.fixture
def make_service(photos: Path, tmp_path: Path) -> Iterator[MakeService]:
    """Makes services over the photos; they are closed at the end of the test."""
    made: list[Service] = []

    def make(rates: Rates | None = None, **settings: object) -> Service:
        values = {"roots": (str(photos),), "cache_dir": tmp_path / "cache", "port": 0, "read_threads": 2, "workers": 1}
        service = Service(ServerSettings.load(**{**values, **settings}), StoreSettings(), rates=rates)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(app_of(service), raise_server_exceptions=False) as client:
        yield client
