"""Random draws that depend on (seed, epoch, index) only, in any thread, without touching torch's global generator."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = {
    getattr(owner, name)
    for owner, names in {
        torch: "bernoulli multinomial normal rand rand_like randint randint_like randn randn_like randperm",
        torch.Tensor: "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal_ random_"
        " uniform_",
    }.items()
    for name in names.split()
}


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of one sample's random transforms: 63 bits of BLAKE2b over the three numbers (each 0 to 2**63 - 1)."""
    packed = struct.pack("<QQQ", seed, epoch, index)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8, person=b"hapi.sample").digest(), "little") >> 1


class SeededDraws(TorchFunctionMode):
    """Within it, this thread's random torch functions draw from a generator of their own.

    The draws are those that follow `torch.manual_seed(seed)`, so that a random transform gives exactly what the same
    code gives after that call. Function modes belong to one thread: others, and the global generator, notice nothing.
    It may be entered again, to go on drawing.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWS:
            kwargs.setdefault("generator", self._generator)
        return func(*args, **kwargs)
