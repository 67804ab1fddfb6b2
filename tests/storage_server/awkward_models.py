"""Small models that ask for something unusual: a residual, two tensors at one cut, a wide first layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hapi.model import Graph, capture, save_archive

SIZE = 16
"""Images are (3, SIZE, SIZE)."""


class Residual(nn.Module):
    """Convolution, batch normalisation, a residual block, a linear layer: gives (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(image)
        hidden = hidden + self.block(hidden)
        return self.last(self.pool(hidden).flatten(1))


class Wide(nn.Module):
    """A first layer with 512 channels, so that one sample needs half a megabyte; gives (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 512, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pool(self.wide(image).relu()).flatten(1)


class TwoInputs(nn.Module):
    """Takes more than an image, which no image dataset can give."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (image * mask).flatten(1)


@dataclass(frozen=True)
class Archive:
    """A captured model and its file."""

    graph: Graph
    path: Path
    digest: str


def make_archive(model: torch.nn.Module, path: Path, inputs: int = 1) -> Archive:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    graph = capture(model.eval(), tuple(torch.randn(2, 3, SIZE, SIZE) for _ in range(inputs)))
    return Archive(graph, path, save_archive(graph, path))
