"""A small set of pictures, a small backbone, and a storage server to talk to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from hapi.model import Graph, capture

CLASSES = ("crane", "heron", "ibis")
PER_CLASS = 11
SAMPLES = len(CLASSES) * PER_CLASS


@pytest.fixture(autouse=True)
def spans_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first spans as long as others: of so few pictures, all would have only one."""
    monkeypatch.setattr("compute_client.spans.FIRST_SPAN", 64)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 JPEG files of 40 x 30 pixels in three class folders, each different."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(PER_CLASS):
            pixels = noise.integers(0, 256, (30, 40, 3), np.uint8) // 2
            pixels[..., label] += 100
            Image.fromarray(pixels).save(root / name / f"{number:02d}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def transform() -> v2.Compose:
    return v2.Compose(
        [v2.Resize(20), v2.CenterCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)],
    )


class Small(nn.Module):
    """Two convolutions and a dropout that eval mode must switch off; 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Dropout(0.5))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.body(self.stem(x)))


@pytest.fixture(scope="session")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return Small().train()


@pytest.fixture(scope="session")
def graph(backbone: nn.Module) -> Graph:
    return capture(backbone, torch.zeros(2, 3, 16, 16), name="small")
