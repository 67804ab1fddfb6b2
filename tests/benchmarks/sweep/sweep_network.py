"""A network of a few milliseconds, by name: `sweep_network:model`."""

from __future__ import annotations

from torch import nn
from torchvision.transforms import v2


def model() -> tuple[nn.Module, v2.Compose]:
    """Two blocks and a classifier over pictures of 32 x 32."""
    import torch

    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    steps = [v2.PILToTensor(), v2.Resize((32, 32), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return network, v2.Compose(steps)
