"""What training a head costs."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import nn

HEAD_CLASSES = 1000
"""Classes of the head that is timed when the data does not say how many it has."""


def head_seconds(
    features: int, classes: int, batch_size: int, device: torch.device | str = "cpu", repeats: int = 5
) -> float:
    """Seconds per sample of one training step of a linear head: the best of a few, after one to warm up."""
    head = nn.Linear(features, classes or HEAD_CLASSES, device=device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    inputs = torch.randn(batch_size, features, device=device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    taken = []
    with torch.enable_grad():
        for _ in range(repeats + 1):
            started = perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for an accelerator
            taken.append(perf_counter() - started)
    return min(taken[1:]) / batch_size
