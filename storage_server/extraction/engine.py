"""A prefix ready to run on the server's device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hapi.errors import InputError
from hapi.model import Cut, Graph, Program, TensorSpec
from profiler.memory import MemoryModel, prefix_memory
from storage_server.scheduling.rates import approximate_flops


@dataclass
class Prefix:
    """The part of a model up to a cut, on one device. `run` belongs to the device's thread; the rest to any.

    Attributes:
        key: (model digest, cut name): equal keys compute the same.
        model: the model's name, for people.
        cut: what `run` answers, per sample.
        input: the one tensor per sample that `run` takes.
        memory: weights and peak bytes per sample.
        engine: what runs it.
    """

    key: tuple[str, str]
    model: str
    cut: Cut
    input: TensorSpec
    memory: MemoryModel
    device: str
    _program: Program = field(repr=False)
    _placed: bool = False
    engine: str = "eager"

    @property
    def what(self) -> str:
        """The model and the cut, for people."""
        return f"{self.model} up to {self.cut.name}"

    @property
    def flops(self) -> float:
        """FLOPs of one sample, roughly."""
        return approximate_flops(self._program)

    @classmethod
    def of(cls, graph: Graph, cut_name: str, device: str, digest: str) -> Prefix:
        """Divides `graph` at the cut; UnknownCutError, or InputError for a model that takes more than an image."""
        if len(graph.inputs) != 1:
            raise InputError(
                f"model {graph.name!r} takes {len(graph.inputs)} inputs; images give one tensor per sample. "
                "Capture a backbone that takes the image only."
            )
        cut = graph.cut(cut_name)
        program, _ = graph.split(cut)
        memory = prefix_memory(program)
        return cls((digest, cut.name), graph.name, cut, graph.inputs[0], memory, device, program)

    def run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The cut's tensors (n, *shape) in host memory, of a batch (n, *input.shape) in host memory."""
        if not self._placed:
            self._program = self._program.to(self.device)
            self._placed = True
        with torch.inference_mode():
            tensors = self._program(batch.to(self.device, non_blocking=True))
            return tuple(tensor.to("cpu") for tensor in tensors)
