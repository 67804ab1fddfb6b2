"""A prefix ready to run on the server's device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from hapi.engine import Engine, Precision
from hapi.errors import InputError
from hapi.model import Cut, Graph, Program, TensorSpec
from profiler.memory import MemoryModel, prefix_memory
from storage_server.extraction.copies import copies_for
from storage_server.scheduling.rates import approximate_flops


class Engines(Protocol):
    """Makes what runs a program that is on its device."""

    def __call__(self, program: Program, *, precision: Precision) -> Engine: ...


BETWEEN = " > "
"""Between the names of two cuts in a key: no module has such a name."""


def _eager(program: Program, *, precision: Precision) -> Engine:
    return Engine(program, choice="eager", precision=precision)


@dataclass
class Prefix:
    """The part of a model up to a cut, or from one to another, on one device.

    `prepare` and `run` belong to the device's thread; the rest to any.

    Attributes:
        key: (model digest, cut name, or two of them for a part between cuts), with a third part where it does not
            compute in float32: equal keys compute the same.
        model: the model's name, for people.
        cut: what `run` answers, per sample.
        input: the one tensor per sample that `run` takes.
        memory: weights and peak bytes per sample.
        precision: in which it computes; what it answers keeps its dtypes.
        engine: what runs it now, `eager` or `compiled`, with `, bf16` in that precision.
    """

    key: tuple[str, ...]
    model: str
    cut: Cut
    input: TensorSpec
    memory: MemoryModel
    device: str
    _program: Program = field(repr=False)
    _engines: Engines | None = field(default=None, repr=False)
    _engine: Engine | None = field(default=None, repr=False)
    precision: Precision = "float32"

    @property
    def engine(self) -> str:
        if self._engine is None:
            return "eager"
        return self._engine.kind + (", bf16" if self._engine.precision == "bf16" else "")

    @property
    def is_compiled(self) -> bool:
        """Whether the next batch runs compiled code, as far as that is known."""
        return self._engine is not None and self._engine.kind == "compiled"

    @property
    def what(self) -> str:
        """The model and the cut, for people."""
        return f"{self.model} {self.key[1]}" if BETWEEN in self.key[1] else f"{self.model} up to {self.cut.name}"

    @property
    def flops(self) -> float:
        """FLOPs of one sample, roughly."""
        return approximate_flops(self._program)

    @classmethod
    def of(
        cls,
        graph: Graph,
        cut_name: str,
        device: str,
        digest: str,
        engines: Engines | None = None,
        precision: Precision = "float32",
    ) -> Prefix:
        """Divides `graph` at the cut; UnknownCutError, or InputError for a model that takes more than an image."""
        if len(graph.inputs) != 1:
            raise InputError(
                f"model {graph.name!r} takes {len(graph.inputs)} inputs; images give one tensor per sample. "
                "Capture a backbone that takes the image only."
            )
        cut = graph.cut(cut_name)
        program, _ = graph.split(cut)
        memory = prefix_memory(program)
        key = prefix_key(digest, cut.name, precision)
        return cls(key, graph.name, cut, graph.inputs[0], memory, device, program, engines, precision=precision)

    @classmethod
    def between(
        cls,
        graph: Graph,
        start: str,
        end: str,
        device: str,
        digest: str,
        engines: Engines | None = None,
        precision: Precision = "float32",
    ) -> Prefix:
        """What leads from the one tensor of a cut to a later cut; UnknownCutError where that cannot be."""
        first, last = graph.cut(start), graph.cut(end)
        program = graph.between(first, last)
        (given,) = program.inputs
        key = prefix_key(digest, f"{first.name}{BETWEEN}{last.name}", precision)
        memory = prefix_memory(program)
        return cls(key, graph.name, last, given, memory, device, program, engines, precision=precision)

    def prepare(self) -> Engine:
        """What the first batch would do before it is computed: places weights, loads compiled code that lies ready."""
        if self._engine is None:
            self._program = self._program.to(self.device)
            self._engine = (self._engines or _eager)(self._program, precision=self.precision)
            self._engine.prepare()
        return self._engine

    def run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The cut's tensors (n, *shape) in host memory, of a batch (n, *input.shape) there or on the device."""
        engine = self.prepare()
        copies = copies_for(self.device)
        with torch.inference_mode():
            return copies.to_host(tuple(engine(copies.to_device(batch))))


def prefix_key(digest: str, cut: str, precision: Precision) -> tuple[str, ...]:
    """Names what a prefix computes."""
    return (digest, cut) if precision == "float32" else (digest, cut, precision)
