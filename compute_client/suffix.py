"""The rest of the backbone, on the compute device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from compute_client.stats import LoaderStats
from hapi.engine import Engine
from hapi.errors import InputError
from hapi.model import Program
from hapi.model.twins import twin
from hapi.model.wrappers import bare

LEAST_BATCH, MOST_BATCH = 8, 256
"""Samples that one call of the suffix gets: at most as many as a training batch, within these bounds."""
MUCH_MORE = 4.0
"""Activations at their peak over weights. On one core, resnet50 took 37.6 ms per sample with 32 at once (3.5 times its
weights), 38.6 with 16, 39.4 with 8; mobilenet_v2 5.1 with 32 (36 times), 5.0 with 16, 5.1 with 8, and a job with 8
touched half as much memory."""
SUFFIX_BYTES = 2**30
"""Most bytes of activations in one call, as far as they are known beforehand: a captured suffix tells its peak."""

Compute = Callable[..., Any]


class SuffixRunner:
    """From the tensors at a cut to finished features, in batches of its own and without gradients.

    The results are ordinary tensors (not inference tensors), so a training loop may save them for its backward pass.
    """

    def __init__(
        self, parts: Mapping[str, Compute], *, device: torch.device, stats: LoaderStats, batch_size: int
    ) -> None:
        """`parts`: cut -> what computes the features from that cut's tensors, already on `device`; more may come.

        `batch_size` is that of training: what fits into memory without HAPI does so with it.
        """
        self._parts, self._device, self._stats = parts, device, stats
        self._batch_size = batch_size
        self._batches: dict[str, int] = {}

    def __call__(self, cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Tensors (n, *shape) at a cut to the backbone's outputs (n, *shape) on the device."""
        started = time.perf_counter()
        compute = self._parts[cut]
        if cut not in self._batches:
            self._batches[cut] = suffix_batch(compute, self._batch_size)
        batch = self._batches[cut]
        outputs: list[tuple[torch.Tensor, ...]] = []
        with torch.no_grad():
            for start in range(0, len(tensors[0]), batch):
                piece = [tensor[start : start + batch].to(self._device) for tensor in tensors]
                outputs.append(_rows(as_tensors(compute(*piece)), len(piece[0])))
            features = tuple(
                torch.cat(column) if len(column) > 1 else column[0] for column in zip(*outputs, strict=True)
            )
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
        self._stats.add(suffix_seconds=time.perf_counter() - started)
        return features


def suffix_batch(compute: Compute, batch_size: int) -> int:
    """How many samples one call gets: as many as a training batch has, or fewer where those are as fast.

    On a CPU a call reads all weights once, and writes and reads every activation. Once activations are much more than
    the weights, more samples bring nothing, and take memory, which costs time when it is touched first.
    """
    wanted = min(max(batch_size, LEAST_BATCH), MOST_BATCH)
    program = compute.program if isinstance(compute, Engine) else compute
    if not isinstance(program, Program):
        return wanted
    peak = max(1, program.peak_bytes(1))
    if program.device.type == "cpu":
        wanted = min(wanted, max(LEAST_BATCH, math.ceil(MUCH_MORE * program.weight_bytes / peak)))
    return max(1, min(wanted, SUFFIX_BYTES // peak))


def as_tensors(output: Any) -> tuple[torch.Tensor, ...]:
    """A backbone's output as a tuple of tensors; InputError for anything but a tensor or a sequence of them."""
    values = (output,) if isinstance(output, torch.Tensor) else output
    if not isinstance(values, tuple | list) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError(
            f"the backbone answers a {type(output).__name__}, not a tensor or a tuple of tensors. "
            "Wrap it in a module whose forward returns the features, for example `.pooler_output`."
        )
    return tuple(values)


def _rows(outputs: tuple[torch.Tensor, ...], samples: int) -> tuple[torch.Tensor, ...]:
    """The outputs; InputError unless each has a row per sample, as a captured graph always does."""
    for output in outputs:
        if not output.dim() or len(output) != samples:
            raise InputError(
                f"the backbone answers {samples} samples with a tensor of shape {tuple(output.shape)}: its first "
                "dimension must be the batch. Wrap it in a module whose forward returns a row of features per sample."
            )
    return outputs


def frozen_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """A twin in eval mode on `device`, so that `train()` on the original does not reach it.

    It shares parameters and buffers with the original when they are on that device already. Wrappers are left out
    (torch.compile, DataParallel, DistributedDataParallel).
    """
    tensors = [*module.parameters(), *module.buffers()]
    shared = all(tensor.device == device for tensor in tensors)
    with bare(module) as network:
        frozen = twin(network, {id(tensor): tensor for tensor in tensors} if shared else {})
    return frozen.eval() if shared else frozen.eval().to(device)
