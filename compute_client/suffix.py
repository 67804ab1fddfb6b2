"""The rest of the backbone, on the compute device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from compute_client.stats import LoaderStats
from hapi.errors import InputError

SUFFIX_BATCH = 64
"""Most samples that one call of the suffix gets: enough to fill a device, little enough to bound its activations."""

Compute = Callable[..., Any]


class SuffixRunner:
    """From the tensors at a cut to finished features, in batches of its own and without gradients.

    The results are ordinary tensors (not inference tensors), so a training loop may save them for its backward pass.
    """

    def __init__(
        self, parts: Mapping[str, Compute], *, device: torch.device, stats: LoaderStats, batch: int = SUFFIX_BATCH
    ) -> None:
        """`parts`: cut -> what computes the features from that cut's tensors, already on `device`."""
        self._parts, self._device, self._batch, self._stats = parts, device, batch, stats

    def __call__(self, cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Tensors (n, *shape) at a cut to the backbone's outputs (n, *shape) on the device."""
        started = time.perf_counter()
        compute = self._parts[cut]
        outputs: list[tuple[torch.Tensor, ...]] = []
        with torch.no_grad():
            for start in range(0, len(tensors[0]), self._batch):
                piece = [tensor[start : start + self._batch].to(self._device) for tensor in tensors]
                outputs.append(as_tensors(compute(*piece)))
            features = tuple(
                torch.cat(column) if len(column) > 1 else column[0] for column in zip(*outputs, strict=True)
            )
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
        self._stats.add(suffix_seconds=time.perf_counter() - started)
        return features


def as_tensors(output: Any) -> tuple[torch.Tensor, ...]:
    """A backbone's output as a tuple of tensors; InputError for anything but a tensor or a sequence of them."""
    values = (output,) if isinstance(output, torch.Tensor) else output
    if not isinstance(values, tuple | list) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(
            f"the backbone answers a {type(output).__name__}, not a tensor or a tuple of tensors. "
            "Wrap it in a module whose forward returns the features, for example `.pooler_output`."
        )
    return tuple(values)


def frozen_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """A twin in eval mode on `device`, so that `train()` on the original does not reach it.

    It shares parameters and buffers with the original when they are on that device already.
    """
    tensors = [*module.parameters(), *module.buffers()]
    shared = all(tensor.device == device for tensor in tensors)
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors} if shared else {})
    return twin.eval() if shared else twin.eval().to(device)
