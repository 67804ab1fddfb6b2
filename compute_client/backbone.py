"""What a loader's `backbone` argument names: a module, a captured graph, or a model by name."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from PIL import Image
from torch import nn

from compute_client.decode import Transform
from compute_client.suffix import Compute, as_tensors, frozen_copy
from hapi.data import TransformSpec
from hapi.engine import CHOICES, Choice, Engine, Precision, check_precision
from hapi.errors import CaptureError, HapiError, InputError
from hapi.model import Graph, Program, capture
from hapi.model.wrappers import unwrapped

PROBE_SIZE = (640, 480)
"""Size of the picture whose transform shows what the backbone's input looks like."""


USUAL_INPUT_BYTES = 3 * 224 * 224 * 4


class Backbone:
    """A frozen feature extractor, captured as a graph only when a part of it is to run elsewhere.

    Attributes:
        transform: the transform that belongs to a model given by name, else None.
        device: where its rest runs: as asked; else where the module's parameters are; else a GPU if there is one.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        weights: str | None,
        device: str | torch.device | None,
        engine: Choice = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.transform: Any = None
        self._example: torch.Tensor | None = None
        self._module: nn.Module | None = None
        self._graph: Graph | None = None
        if isinstance(backbone, str):
            from hapi.model.zoo import load_model  # only here are model libraries needed

            model = load_model(backbone, weights)
            self.name, self._module, self.transform, self._example = (
                model.name,
                model.backbone,
                model.transform,
                model.example,
            )
        elif isinstance(backbone, Graph):
            self.name, self._graph = backbone.name, backbone
        elif isinstance(backbone, nn.Module):
            self._module = unwrapped(backbone)
            self.name = type(self._module).__name__
        else:
            raise InputError(
                f"backbone is a {type(backbone).__name__}: give a torch.nn.Module, a hapi.Graph, "
                "or a name such as 'torchvision:resnet18'."
            )
        self.device = device_of(device, None if isinstance(backbone, str) else self._module)
        if engine not in CHOICES:
            raise InputError(f"engine {engine!r} is not known. Choose one of {', '.join(CHOICES)}.")
        check_precision(precision, self.device)
        self.engine, self.precision = engine, precision

    def graph(self, transform: Transform | None) -> Graph:
        """The captured graph; CaptureError says why there is none and that pushdown="none" still works."""
        if self._graph is None:
            assert self._module is not None
            example = self._example if self._example is not None else _example(transform)
            parameter = next(self._module.parameters(), None)
            try:
                self._graph = capture(
                    self._module, example if parameter is None else example.to(parameter.device), name=self.name
                )
            except CaptureError as error:
                raise CaptureError(f'{error} (pushdown="none" runs this backbone without capturing it)') from error
        return self._graph

    @property
    def version(self) -> Hashable:
        """Changes when the weights are written to: by the user, who holds the same tensors."""
        if self._module is not None:
            tensors = (*self._module.parameters(), *self._module.buffers())
        else:
            assert self._graph is not None
            tensors = tuple(self._graph.weights.values())
        return tuple((id(tensor), tensor._version) for tensor in tensors if not tensor.is_inference())

    def renew(self) -> None:
        """After a change of `version`: a module is captured anew when that is needed. It may have other tensors, and a
        batch norm writes to its statistics without their own versions changing."""
        if self._module is not None:
            self._graph = None

    def input_bytes(self, transform: Transform) -> int:
        """Bytes of one input tensor; a plausible guess for a function that cannot be asked."""
        if self._graph is not None:
            return sum(spec.bytes for spec in self._graph.inputs)
        if self._example is not None:
            return self._example[0].nbytes
        return _example(transform)[0].nbytes if isinstance(transform, TransformSpec) else USUAL_INPUT_BYTES

    def feature_shapes(self, transform: Transform) -> tuple[tuple[int, ...], ...]:
        """Shapes of the backbone's outputs for one sample."""
        if self._graph is not None:
            return (self._graph.output.shape,)
        example = self._example if self._example is not None else _example(transform)
        with torch.no_grad():
            return tuple(
                tuple(output.shape[1:]) for output in as_tensors(self.whole(transform)(example.to(self.device)))
            )

    def whole(self, transform: Transform | None = None) -> Compute:
        """The backbone itself, in eval mode, on the device: captured only for compiled code and other precisions."""
        if self._module is None or self.engine == "compiled" or self.precision != "float32":
            return self._engine(self.graph(transform).whole)
        return frozen_copy(self._module, self.device)

    def suffix(self, cut: str, transform: Transform | None) -> Compute:
        """What is left after a cut, on the device."""
        _, suffix = self.graph(transform).split(cut)
        return self._engine(suffix)

    def _engine(self, program: Program) -> Engine:
        """Ready to run: what lies compiled is loaded now, not while the first batch is waited for."""
        engine = Engine(program.to(self.device), choice=self.engine, precision=self.precision)
        engine.prepare()
        return engine


def device_of(asked: str | torch.device | None, module: nn.Module | None = None) -> torch.device:
    """The device asked for, else the module's, else a GPU if there is one. InputError for one that is not there."""
    if asked is not None:
        try:
            device = torch.device(asked)
        except RuntimeError as error:
            raise InputError(f"device {asked!r}: {error}. Say for example 'cpu' or 'cuda:0'.") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {asked!r}: torch finds no CUDA device here. Use 'cpu'.")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise InputError(f"device {asked!r}: the last CUDA device here is 'cuda:{count - 1}'. Use one up to that.")
        return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
    parameter = next(module.parameters(), None) if module is not None else None
    if parameter is not None:
        return parameter.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _example(transform: Transform | None) -> torch.Tensor:
    """A batch of two inputs of the shape that the transform makes."""
    picture = Image.new("RGB", PROBE_SIZE, (127, 127, 127))
    if transform is None:
        raise InputError("the backbone's input is unknown without a transform. Pass transform=weights.transforms().")
    try:
        value = (
            transform(picture, seed=0, epoch=0, index=0) if isinstance(transform, TransformSpec) else transform(picture)
        )
    except HapiError:
        raise
    except Exception as error:
        raise InputError(f"the transform fails on a plain picture: {type(error).__name__}: {error}") from error
    if not isinstance(value, torch.Tensor):
        raise InputError(f"the transform gives a {type(value).__name__}, not a tensor. End it with ToTensor().")
    return torch.stack([value, value])
