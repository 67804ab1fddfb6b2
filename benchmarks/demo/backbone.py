"""A backbone that needs no download: a real architecture with random weights, its BatchNorm statistics fitted to data.

Random convolutions give usable features as long as their scale is kept from layer to layer. A network's own
initialisation does not see to that in eval mode, where BatchNorm divides by statistics that nobody has measured; here
they are measured on some pictures, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

NAME = "mobilenet_v3_small"


def fitted_backbone(pictures: Sequence[Path], seed: int) -> tuple[nn.Module, Any]:
    """(backbone, transform): pictures to features (B, 576); the same for equal pictures and seed."""
    transform = MobileNet_V3_Small_Weights.DEFAULT.transforms()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mobilenet_v3_small(weights=None)
    network.classifier = nn.Sequential()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all that it sees
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
    network.train()
    with torch.no_grad():
        network(batch)
    return network.eval().requires_grad_(False), transform
