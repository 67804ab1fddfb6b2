"""A runnable part of a graph: a plain loop over operations that frees each value after its last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeAlias

import torch

from hapi.errors import InputError
from hapi.model.calls import Call
from hapi.model.liveness import Ledger, constants, frees, needed
from hapi.model.node import Node
from hapi.model.pauses import pause_of_thread
from hapi.model.specs import TensorSpec, ValueSpec, dtype_name, in_order

if TYPE_CHECKING:
    from hapi.model.graph import Graph

Observer: TypeAlias = Callable[[Node], AbstractContextManager[object]]


class Program:
    """Nodes of a graph between given inputs and outputs, on one device.

    Calling it takes one tensor per entry of `inputs`, each of shape (B, *spec.shape), on the program's device, and
    gives a tuple with one tensor per entry of `outputs`, or, when `is_single`, the one tensor itself. It keeps no
    state between calls and may be called from several threads. Gradients and inference mode are the caller's choice.
    """

    def __init__(
        self,
        graph: Graph,
        title: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        is_single: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.graph = graph
        self.title = title
        self.input_names = tuple(inputs)
        self.output_names = tuple(outputs)
        self.is_single = is_single
        self.device = device or graph.device
        self.nodes = needed(graph.nodes, self.output_names, self.input_names)
        self.frees = frees(self.nodes, self.output_names)
        self.weight_names = tuple(dict.fromkeys(name for node in self.nodes for name in node.weights()))
        self._weights = graph.weights_on(self.device, self.weight_names)
        fixed = constants(self.nodes)
        self._calls = tuple(Call(node, self.device, is_constant=node.name in fixed) for node in self.nodes)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, per sample."""
        return tuple(self.graph.specs[name].per_sample for name in self.input_names)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, per sample."""
        return tuple(self.graph.specs[name].per_sample for name in self.output_names)

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The weights that this part reads, on its device."""
        return self._weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that this part reads."""
        return sum(weight.nbytes for weight in self._weights.values())

    def specs(self, node: Node) -> tuple[ValueSpec, ...]:
        """The specs of a node's results: sizes affine in the batch, dtype, storage."""
        return tuple(self.graph.specs[name] for name in node.outputs)

    def to(self, device: torch.device | str) -> Program:
        """The same program on another device; programs of one graph share one copy of each weight per device."""
        target = torch.empty(0, device=device).device  # 'cuda' is told which GPU it means, as tensors are
        if target == self.device:
            return self
        return Program(
            self.graph, self.title, self.input_names, self.output_names, is_single=self.is_single, device=target
        )

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.run(*tensors)

    def run(self, *tensors: torch.Tensor, observe: Observer | None = None) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Runs it; `observe(node)` gives a context manager that is entered around each operation (to time it, say).

        Raises InputError for tensors of another number, shape, dtype or device than `inputs` says.
        """
        batch = self.check(tensors)
        values = {name: self._laid_out(name, tensor) for name, tensor in zip(self.input_names, tensors, strict=True)}
        del tensors
        pause = pause_of_thread()
        for call, freed in zip(self._calls, self.frees, strict=True):
            if pause is not None:
                pause()
            if observe is None:
                results = call(values, self._weights, batch)
            else:
                with observe(call.node):
                    results = call(values, self._weights, batch)
            values.update(zip(call.node.outputs, results, strict=True))
            del results
            for name in freed:
                del values[name]
        if self.is_single:
            return values[self.output_names[0]]
        return tuple(values[name] for name in self.output_names)

    def live_bytes(self, batch: int) -> tuple[int, ...]:
        """Bytes of tensors alive while each node runs, for a batch; weights apart, inputs held to the end.

        Exact from shapes and last uses: a view weighs nothing, and keeps alive the storage that it shows. The
        workspace of an operation is not in it.
        """
        ledger = Ledger(self.graph.specs, batch)
        for name in self.input_names:
            ledger.arrive(name, copied=self._order(name) is not None)
        timeline = []
        for node, freed in zip(self.nodes, self.frees, strict=True):
            for name in node.outputs:
                ledger.hold(name)
            timeline.append(ledger.total)
            for name in freed:
                ledger.release(name)
        return tuple(timeline)

    def peak_bytes(self, batch: int) -> int:
        """The most bytes of tensors alive at once, for a batch (inputs and outputs counted, weights not)."""
        return max(self.live_bytes(batch), default=sum(self.graph.specs[n].bytes(batch) for n in self.input_names))

    def _laid_out(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Carried tensors get back the memory layout they had, on which the last bit of a convolution may depend."""
        return tensor if name in self.graph.input_names else in_order(tensor, self._order(name))

    def _order(self, name: str) -> tuple[int, ...] | None:
        return None if name in self.graph.input_names else self.graph.specs[name].order

    def check(self, tensors: Sequence[torch.Tensor]) -> int:
        """The batch size of tensors that it can take; InputError for others, see `run`."""
        if len(tensors) != len(self.input_names):
            raise InputError(
                f"{self.title} takes {len(self.input_names)} tensors ({', '.join(map(str, self.inputs))}), "
                f"got {len(tensors)}."
            )
        batch = tensors[0].shape[0] if tensors[0].dim() else 0
        for position, (tensor, spec) in enumerate(zip(tensors, self.inputs, strict=True)):
            if tuple(tensor.shape) != (batch, *spec.shape) or tensor.dtype != spec.dtype or batch == 0:
                raise InputError(
                    f"{self.title}: tensor {position} must be {spec} with a batch B of at least 1, "
                    f"got {tuple(tensor.shape)} {dtype_name(tensor.dtype)}."
                )
            if tensor.device != self.device:
                raise InputError(
                    f"{self.title}: tensor {position} is on {tensor.device}, the program on {self.device}. "
                    f"Move one of them, for example program.to({str(tensor.device)!r})."
                )
        return batch

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self.nodes)} nodes on {self.device}>"
