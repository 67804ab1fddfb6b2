"""A prefix ready to run on the server's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hapi.engine import Engine
from hapi.errors import InputError
from hapi.model import Cut, Graph, Program, TensorSpec
from profiler.memory import MemoryModel, prefix_memory
from storage_server.extraction.copies import copies_for
from storage_server.scheduling.rates import approximate_flops

Engines = Callable[[Program], Engine]
"""What runs a program that is on its device."""


BETWEEN = " > "
"""Between the names of two cuts in a key: no module has such a name."""


def _eager(program: Program) -> Engine:
    return Engine(program, choice="eager")


@dataclass
class Prefix:
    """The part of a model up to a cut, or from one to another, on one device.

    `run` belongs to the device's thread; the rest to any.

    Attributes:
        key: (model digest, cut name, or two of them for a part between cuts): equal keys compute the same.
        model: the model's name, for people.
        cut: what `run` answers, per sample.
        input: the one tensor per sample that `run` takes.
        memory: weights and peak bytes per sample.
        engine: what runs it now, `eager` or `compiled`, with `, bf16` in that precision.
    """

    key: tuple[str, str]
    model: str
    cut: Cut
    input: TensorSpec
    memory: MemoryModel
    device: str
    _program: Program = field(repr=False)
    _engines: Engines | None = field(default=None, repr=False)
    _engine: Engine | None = field(default=None, repr=False)

    @property
    def engine(self) -> str:
        if self._engine is None:
            return "eager"
        return self._engine.kind + (", bf16" if self._engine.precision == "bf16" else "")

    @property
    def what(self) -> str:
        """The model and the cut, for people."""
        return f"{self.model} {self.key[1]}" if BETWEEN in self.key[1] else f"{self.model} up to {self.cut.name}"

    @property
    def flops(self) -> float:
        """FLOPs of one sample, roughly."""
        return approximate_flops(self._program)

    @classmethod
    def of(cls, graph: Graph, cut_name: str, device: str, digest: str, engines: Engines | None = None) -> Prefix:
        """Divides `graph` at the cut; UnknownCutError, or InputError for a model that takes more than an image."""
        if len(graph.inputs) != 1:
            raise InputError(
                f"model {graph.name!r} takes {len(graph.inputs)} inputs; images give one tensor per sample. "
                "Capture a backbone that takes the image only."
            )
        cut = graph.cut(cut_name)
        program, _ = graph.split(cut)
        memory = prefix_memory(program)
        return cls((digest, cut.name), graph.name, cut, graph.inputs[0], memory, device, program, engines)

    @classmethod
    def between(
        cls, graph: Graph, start: str, end: str, device: str, digest: str, engines: Engines | None = None
    ) -> Prefix:
        """What leads from the one tensor of a cut to a later cut; UnknownCutError where that cannot be."""
        first, last = graph.cut(start), graph.cut(end)
        program = graph.between(first, last)
        (given,) = program.inputs
        key = (digest, f"{first.name}{BETWEEN}{last.name}")
        return cls(key, graph.name, last, given, prefix_memory(program), device, program, engines)

    def run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The cut's tensors (n, *shape) in host memory, of a batch (n, *input.shape) in host memory."""
        if self._engine is None:
            self._program = self._program.to(self.device)
            self._engine = (self._engines or _eager)(self._program)
        copies = copies_for(self.device)
        with torch.inference_mode():
            return copies.to_host(tuple(self._engine(copies.to_device(batch))))
