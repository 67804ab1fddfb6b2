"""The two modules that a model is divided into: each runs its share of the call graph with the model's own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hapi.model.boundary.callgraph import Here, Value, replace
from hapi.model.boundary.steps import Step
from hapi.model.twins import twin


class Part(nn.Module):
    """Runs steps over submodules that are registered under the names they have in the original model.

    `modules` come in the model's order, which has outer modules before what is inside them.
    """

    def __init__(self, model_name: str, modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
        super().__init__()
        self.model_name = model_name
        for name, module in modules.items():
            owner, leaf = _owner(self, name)
            if getattr(owner, leaf, None) is not module:
                owner.add_module(leaf, module)
        for name, value in state.items():
            owner, leaf = _owner(self, name)
            if leaf in owner._parameters or leaf in owner._buffers or leaf in owner._modules:
                continue
            if isinstance(value, nn.Parameter):
                owner.register_parameter(leaf, value)
            elif isinstance(value, Tensor):
                owner.register_buffer(leaf, value, persistent=False)
            else:
                setattr(owner, leaf, value)

    def _run(self, steps: Sequence[Step], inputs: Sequence[Tensor]) -> Any:
        values: list[Any] = [None] * len(steps)
        given = iter(inputs)
        device = inputs[0].device

        def fill(leaf: Any) -> Any:
            return values[leaf.position] if isinstance(leaf, Value) else device if isinstance(leaf, Here) else leaf

        for position, step in enumerate(steps):
            if step.kind == "input":
                values[position] = next(given)
            elif step.kind == "state":
                owner, leaf = _owner(self, step.target)
                values[position] = getattr(owner, leaf)
            elif step.kind == "call":
                args, kwargs = pytree.tree_unflatten([fill(leaf) for leaf in step.args], step.spec)
                values[position] = self.get_submodule(step.target)(*args, **kwargs)
            elif step.kind == "op":
                values[position] = step.target(*replace(step.args, fill), **replace(step.kwargs, fill))
            else:
                return fill(step.args[0])
            for done in step.forget:
                values[done] = None
        raise AssertionError("a part ends with its output")

    def extra_repr(self) -> str:
        return f"of {self.model_name}"


class Backbone(Part):
    """The frozen part: always in eval mode and without gradients, whatever `train()` is called on.

    Its modules are copies that share the model's parameters and buffers, so that training the head or calling
    `model.train()` changes nothing here. Input as the model's; output one tensor, samples first.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], state: Mapping[str, Any], steps: Sequence[Step]) -> None:
        memo = sharing(model)
        copies = {name: twin(model.get_submodule(name), memo).eval() for name in names}
        super().__init__(type(model).__name__, copies, state)
        self._steps = tuple(steps)
        self.eval()

    def then(self, function: Callable[[Any], Tensor]) -> Backbone:
        """The same backbone, over the same modules, with a parameterless function applied to its result."""
        more = copy.copy(self)
        more.__dict__ = self.__dict__ | {
            name: dict(self.__dict__[name]) for name in ("_modules", "_parameters", "_buffers")
        }
        *steps, last = self._steps
        applied = Step("op", function, last.args, {}, None, last.forget)
        more._steps = (*steps, applied, Step("output", "output", (Value(len(steps)),), {}, None, (len(steps),)))
        return more

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a frozen part computes the same features at all times."""
        return super().train(False)

    def forward(self, images: Tensor, *more: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._run(self._steps, (images, *more))  # a switch of gradients would be written into the graph
        with torch.no_grad():
            return self._run(self._steps, (images, *more))


class Head(Part):
    """The rest of the model, from features on: its own live modules, in train and in eval mode, to be trained in place.

    Input one tensor of features, samples first; output what the model returns. The parameters are the model's own,
    under the model's names.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        state: Mapping[str, Any],
        eval_steps: Sequence[Step],
        train_steps: Sequence[Step],
    ) -> None:
        super().__init__(type(model).__name__, {name: model.get_submodule(name) for name in names}, state)
        self._eval_steps = tuple(eval_steps)
        self._train_steps = tuple(train_steps)
        self.writes_to_input = False
        """Whether the first step works in place; the features are then copied first and the caller's left alone."""
        self.training = model.training

    def forward(self, features: Tensor) -> Any:
        if self.writes_to_input:
            features = features.clone()
        return self._run(self._train_steps if self.training else self._eval_steps, (features,))


def sharing(model: nn.Module) -> dict[int, Any]:
    """A memo for copy.deepcopy under which copies of modules keep the model's own parameters and buffers."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            memo[id(owned)] = owned
            memo.update((id(tensor), tensor) for tensor in owned.values() if tensor is not None)
    return memo


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the last part of a dotted name, made of empty modules where there is none."""
    *path, leaf = name.split(".")
    for step in path:
        child = root._modules.get(step)
        if child is None:
            child = nn.Module()
            root.add_module(step, child)
        root = child
    return root, leaf
