"""A backbone captured as one graph of ATen operations, its cuts, and its division at a cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from threading import Lock
from types import MappingProxyType

import torch

from hapi.errors import UnknownCutError
from hapi.model.checks import ShapeError, ShapeLimits
from hapi.model.cuts import Cut, find_cuts
from hapi.model.liveness import absent, needed
from hapi.model.node import Node
from hapi.model.program import Program
from hapi.model.shapes import infer
from hapi.model.specs import TensorSpec, ValueSpec

_NAMES_IN_MESSAGE = 12


class Graph:
    """Inputs, nodes in order, weights, and one output: everything a backbone does, as data.

    `specs` has the spec of every value, derived by walking the graph on the meta device; `orders` the order in memory
    of the dimensions of values that are not laid out in the usual one. Weights are held as they were given, without
    copying; a captured graph shares them with its module. Raises ShapeError for nodes that cannot run.
    """

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, TensorSpec],
        nodes: Sequence[Node],
        output: str,
        weights: Mapping[str, torch.Tensor],
        orders: Mapping[str, tuple[int, ...]] | None = None,
        limits: ShapeLimits | None = None,
    ) -> None:
        self.name = name
        self.input_names = tuple(inputs)
        self.inputs = tuple(inputs.values())
        self.output_name = output
        self.nodes = needed(nodes, [output], self.input_names)
        used = {weight for node in self.nodes for weight in node.weights()}
        self.weights: Mapping[str, torch.Tensor] = MappingProxyType({name: weights[name] for name in sorted(used)})
        self.orders = {} if orders is None else dict(orders)
        self.specs: Mapping[str, ValueSpec] = MappingProxyType(
            infer(inputs, self.weights, self.nodes, self.orders, limits)
        )
        if not self.specs[output].is_batched:
            raise ShapeError(
                f"the output has the shape {self.specs[output].shape(2)} for a batch of 2; "
                "its first dimension must be the batch"
            )
        self._placed: dict[torch.device, dict[str, tuple[int, torch.Tensor]]] = {}
        self._lock = Lock()
        self._digest: tuple[tuple[int, ...], str] | None = None

    @property
    def output(self) -> TensorSpec:
        """What the backbone gives, per sample."""
        return self.specs[self.output_name].per_sample

    @property
    def device(self) -> torch.device:
        """Where the weights are; programs start there."""
        return next((weight.device for weight in self.weights.values()), torch.device("cpu"))

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Where the graph can be divided, in order: `input` first, `output` last."""
        return find_cuts(self.input_names, self.nodes, self.output_name, self.specs)

    def cut(self, which: Cut | str | int) -> Cut:
        """The cut with a name (or another name of the same place) or index; raises UnknownCutError."""
        if isinstance(which, Cut):
            which = which.name
        if isinstance(which, int):
            if -len(self.cuts) <= which < len(self.cuts):
                return self.cuts[which]
            raise UnknownCutError(
                f"{self.name} has no cut number {which}: it has {len(self.cuts)}, numbered from 0 (input)."
            )
        for cut in self.cuts:
            if which == cut.name or which in cut.aliases:
                return cut
        known = [cut.name for cut in self.cuts]
        close = get_close_matches(which, known, n=5, cutoff=0.4) or known[:_NAMES_IN_MESSAGE]
        raise UnknownCutError(
            f"{self.name} has no cut {which[:80]!r}. Close to it: {', '.join(close)}. "
            f"All {len(known)} are in graph.cuts, and `hapi profile` lists them."
        )

    def split(self, cut: Cut | str | int) -> tuple[Program, Program]:
        """(prefix, suffix): the prefix gives the tuple of tensors the cut carries, the suffix the backbone's output.

        suffix(*prefix(*inputs)) equals the backbone bit for bit on the same device and batch. What the suffix can
        cheaply make again (position indices, attention masks) is not carried.
        """
        at = self.cut(cut)
        prefix = Program(self, f"prefix of {self.name} to {at.name}", self.input_names, at.values)
        suffix = Program(self, f"suffix of {self.name} after {at.name}", at.values, [self.output_name], is_single=True)
        return prefix, suffix

    def between(self, start: Cut | str | int, end: Cut | str | int) -> Program:
        """What leads from the tensors at one cut to those at a later one, as `split` leads from the inputs to a cut.

        between(a, b)(*prefix_of_a(*inputs)) equals prefix_of_b(*inputs) bit for bit on the same device and batch.
        UnknownCutError if `end` is not later, or carries something that cannot be made from what `start` carries.
        """
        first, last = self.cut(start), self.cut(end)
        if first.index >= last.index:
            raise UnknownCutError(f"{self.name}: {last.name} does not come after {first.name}. Name the earlier first.")
        missing = absent(needed(self.nodes, last.values, first.values), last.values, first.values)
        if missing:
            raise UnknownCutError(
                f"{self.name}: {last.name} needs {', '.join(missing)}, which {first.name} does not carry. "
                "Start from the inputs, graph.split(cut)."
            )
        return Program(self, f"part of {self.name} from {first.name} to {last.name}", first.values, last.values)

    @cached_property
    def whole(self) -> Program:
        """The whole backbone as one program."""
        return Program(self, self.name, self.input_names, [self.output_name], is_single=True)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        result = self.whole.run(*inputs)
        assert isinstance(result, torch.Tensor)
        return result

    def weights_on(self, device: torch.device, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named weights on a device. One copy per device is kept and shared, and renewed after a change."""
        with self._lock:
            placed = self._placed.setdefault(device, {})
            for name in names:
                weight = self.weights[name]
                if name not in placed or placed[name][0] != _version(weight):
                    placed[name] = (_version(weight), weight.to(device))
            return {name: placed[name][1] for name in names}

    @property
    def weight_versions(self) -> tuple[int, ...]:
        """Changes whenever somebody writes to a weight."""
        return tuple(map(_version, self.weights.values()))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the graph's archive; computed when first asked for, and again after a weight was changed."""
        versions = self.weight_versions
        if self._digest is None or self._digest[0] != versions:
            from hapi.model.archive import digest_of  # the archive knows graphs; a graph only asks for its address

            self._digest = (versions, digest_of(self))
        return self._digest[1]

    @property
    def is_named(self) -> bool:
        """Whether `digest` costs nothing: it is known for the weights as they are."""
        return self._digest is not None and self._digest[0] == self.weight_versions

    def digest_is(self, digest: str) -> None:
        """Notes the digest of the file the graph was just read from."""
        self._digest = (self.weight_versions, digest)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.nodes)} nodes, {len(self.weights)} weights, {len(self.cuts)} cuts>"


def _version(weight: torch.Tensor) -> int:
    try:  # no operation, as `is_inference` would be one: this is asked of every weight for each batch
        return weight._version
    except RuntimeError:  # of a tensor made in inference mode, of which nothing is counted
        return 0
