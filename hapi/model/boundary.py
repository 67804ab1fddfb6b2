"""`hapi.split`: a partly frozen model becomes a frozen backbone and a head that trains in place.

One mechanism for all models: the call graph (callgraph.py) says which of the model's own modules and operators ran, in
which order, on what. The boundary is a place in that order which exactly one tensor crosses; what comes before runs as
the Backbone, what comes after as the Head, both with the model's own modules and parameters (parts.py). Rewriting the
model operator by operator would lose its modules, and with them train mode, hooks and `.to(device)`; tracing Python
symbolically fails on Hugging Face models. Only the containers around the boundary are looked into.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hapi.errors import CaptureError, InputError
from hapi.model.callgraph import callable_children, trace
from hapi.model.guess import guess_example
from hapi.model.parts import Backbone, Head, Step
from hapi.model.wiring import Wiring, head_steps, prefix_steps, same_place, whole_steps


def split(
    model: nn.Module, at: str | None = None, *, example: Tensor | tuple[Tensor, ...] | None = None
) -> tuple[Backbone, Head]:
    """Divides `model` into (backbone, head) with `head(backbone(x))` equal to `model(x)`.

    Without `at` the boundary is read from `requires_grad`: the backbone is everything up to the first trainable
    parameter in the order of the forward pass, with the parameterless operators that follow it (pooling, flatten), as
    long as one tensor crosses. Random operators just before the trainable part (a Dropout before the classifier)
    belong to the head. Frozen parameters after the first trainable one stay in the head, frozen. With `at`, the name of
    a submodule such as "layer4", the backbone ends with that module's output, whatever is frozen.

    The backbone takes the model's input and gives one tensor, samples first. It always computes as in eval mode
    (BatchNorm with its running statistics, no dropout) and without gradients, also after `model.train()`: frozen means
    that features do not change. Parameters and buffers are shared with the model, so that training the head trains the
    model. The head follows `train()` and `eval()`, returns what the model returns, and names its parameters as the
    model does.

    `example` is an input of the model (tensors with the batch first); needed only when it cannot be told from the model
    (an image classifier's can). The model is run on it, in eval mode, and is left as it was.

    Raises InputError (nothing frozen, nothing trainable, unknown `at`) or CaptureError (the model cannot be traced, or
    several tensors cross the boundary).
    """
    return divide(model, at, example)


def divide(
    model: nn.Module,
    at: str | None = None,
    example: Tensor | tuple[Tensor, ...] | None = None,
    *,
    follow_training: bool = True,
) -> tuple[Backbone, Head]:
    """`split`, also for feature extraction alone: without `follow_training` the containers' own code is followed in
    eval mode only, so that auxiliary classifiers, which some networks call in train mode, do not move the boundary."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise InputError(f"split: {name} is not a torch.nn.Module. Pass the model itself.")
    if at is None:
        _check_freezing(model)
    else:
        _check_name(model, at)
    inputs = _as_inputs(example) if example is not None else guess_example(model)
    found = _at_module(model, at, inputs) if at is not None else _at_freezing(model, inputs, follow_training)
    backbone, head = _parts(model, found)
    _check_exact(model, backbone, head, inputs)
    return backbone, head


def whole(model: nn.Module, *, example: Tensor | tuple[Tensor, ...] | None = None) -> Backbone:
    """All of `model` as a backbone; it gives what the model gives, frozen and in eval mode. Raises CaptureError."""
    inputs = _as_inputs(example) if example is not None else guess_example(model)
    wiring = Wiring(model, trace(model, inputs, expand=frozenset({""}), training=lambda name: False))
    steps = whole_steps(wiring)
    return Backbone(model, *_used(model, wiring.state, steps), steps)


@dataclass(frozen=True)
class _Boundary:
    """Where the boundary lies in the eval graph and in the train graph (the last position before it in each)."""

    evaluating: Wiring
    training: Wiring
    position: int
    training_position: int


# -- where it lies -------------------------------------------------------------------------------------------


def _at_module(model: nn.Module, at: str, inputs: tuple[Tensor, ...]) -> _Boundary:
    parts = at.split(".")
    expand = frozenset(".".join(parts[:depth]) for depth in range(len(parts)))
    wiring = Wiring(model, trace(model, inputs, expand=expand, training=lambda name: False))
    name = type(model).__name__
    ends = wiring.ends_of(at)
    if len(ends) != 1:
        inside = [child for child, _ in callable_children(model.get_submodule(at), at)]
        hint = f" It is a list of modules: name one of {_some(inside)}." if inside and not ends else ""
        raise CaptureError(
            f"split of {name} at {at!r}: that module is called {len(ends)} times in the forward pass, and a boundary "
            f"needs exactly one.{hint} Modules called in order: {_some(wiring.call_names)}."
        )
    position = ends[0]
    _check_crossing(wiring, position, at)
    behind = [p for i in wiring.moving if i <= position for p in wiring.parameters_of(wiring.nodes[i])]
    everything = all(p.requires_grad for p in model.parameters())
    if any(p.requires_grad for p in behind) and not everything:
        trained = [n for n, p in model.named_parameters() if p.requires_grad and any(p is b for b in behind)]
        raise InputError(
            f"split of {name} at {at!r}: {_some(trained)} would be in the frozen backbone but requires gradients. "
            f"Freeze it with requires_grad_(False), or choose an earlier boundary."
        )
    if not any(wiring.parameters_of(wiring.nodes[i]) for i in wiring.moving if i > position):
        raise InputError(
            f"split of {name} at {at!r}: no parameter comes after that module, so there is no head to train. "
            f"Choose an earlier module: {_some(wiring.call_names[: wiring.call_names.index(at)])}."
        )
    in_head = [node.target for node in wiring.nodes[position + 1 :] if node.kind == "call"]
    training = Wiring(model, trace(model, inputs, expand=expand, training=lambda n: n in expand or _under(n, in_head)))
    where = same_place(wiring, position, training)
    if where is None:
        raise CaptureError(f"split of {name} at {at!r}: in train mode the model runs differently before that module.")
    _check_crossing(training, where, at)
    return _Boundary(wiring, training, position, where)


def _at_freezing(model: nn.Module, inputs: tuple[Tensor, ...], follow_training: bool) -> _Boundary:
    """Looks into containers only as far as the boundary needs it: first those with frozen and trainable parameters."""
    expand: frozenset[str] = frozenset({""})
    search = _search(model, inputs, expand, follow_training)
    deeper = search
    while deeper.mixed is not None:
        expand |= {deeper.mixed}
        deeper = _search(model, inputs, expand, follow_training)
        if deeper.found is not None and deeper.looks_into(deeper.found, search.mixed):
            search = deeper
    search = _without_random_tail(model, inputs, search, follow_training)
    if search.found is None:
        raise CaptureError(
            f"split of {type(model).__name__}: no place before its first trainable parameter "
            f"({search.first_trainable}) has frozen parameters behind it and exactly one tensor that crosses. Freeze "
            "whole blocks from the input on, or name the last frozen module with at=."
        )
    return search.found


def _without_random_tail(
    model: nn.Module, inputs: tuple[Tensor, ...], search: _Search, follow_training: bool
) -> _Search:
    """A frozen container that ends with a Dropout, just before the trainable part, leaves that Dropout to the head."""
    deeper = search
    while deeper.found is not None and deeper.random_last is not None:
        inside = deeper.random_last
        deeper = _search(model, inputs, deeper.expand | {inside}, follow_training)
        if deeper.found is not None and deeper.found.position >= deeper.last_frozen and deeper.ends_inside(inside):
            search = deeper
    return search


@dataclass(frozen=True)
class _Search:
    """What one look at the model, with the containers in `expand` opened, has shown."""

    expand: frozenset[str]
    found: _Boundary | None
    first_trainable: str
    mixed: str | None
    """The container that the boundary may lie in: the first trainable call, if some of its parameters are frozen."""
    last_frozen: int
    """The position of the last operator with frozen parameters before the first trainable one."""
    random_last: str | None
    """That operator's module, if it can be looked into and does something random in train mode."""

    def looks_into(self, found: _Boundary, container: str | None) -> bool:
        """Whether opening `container` has moved something of it into the backbone."""
        nodes = found.evaluating.nodes[: found.position + 1]
        return container is None or any(
            node.kind == "call" and _under(node.target, [container]) and found.evaluating.parameters_of(node)
            for node in nodes
        )

    def ends_inside(self, container: str) -> bool:
        """Whether the boundary leaves a call inside `container` to the head."""
        found = self.found
        return found is not None and any(
            node.kind == "call" and _under(node.target, [container])
            for node in found.evaluating.nodes[found.position + 1 :]
        )


def _search(model: nn.Module, inputs: tuple[Tensor, ...], expand: frozenset[str], follow_training: bool) -> _Search:
    wiring = Wiring(model, trace(model, inputs, expand=expand, training=lambda name: False))
    first = wiring.first_trainable()
    frozen = [i for i in wiring.moving if i < first and wiring.parameters_of(wiring.nodes[i])]
    frozen_calls = [wiring.nodes[i].target for i in frozen if wiring.nodes[i].kind == "call"]
    stateless = {name for name, m in model.named_modules() if not any(True for _ in m.children()) and _is_stateless(m)}
    training = Wiring(
        model,
        trace(model, inputs, expand=expand, training=lambda n: n in stateless or not _under(n, frozen_calls)),
    )
    randomness = training.random_calls()
    if not follow_training:
        training = wiring
    last = frozen[-1] if frozen else -1
    calm = last
    while calm + 1 < first and not wiring.is_random(calm + 1, randomness):
        calm += 1
    order = [*range(calm, last - 1, -1), *range(first - 1, calm, -1), *range(last - 1, (frozen or [0])[0] - 1, -1)]
    found = None
    for position in order if frozen else ():
        where = same_place(wiring, position, training) if wiring.crossing_tensor(position) is not None else None
        if where is not None and training.crossing_tensor(where) is not None:
            found = _Boundary(wiring, training, position, where)
            break
    start = wiring.nodes[first]
    mixed = start.kind == "call" and not all(p.requires_grad for p in wiring.parameters_of(start))
    tail = wiring.nodes[last] if frozen else None
    random_last = (
        tail.target
        if tail and tail.kind == "call" and wiring.is_random(last, randomness) and _opens(model, tail.target)
        else None
    )
    return _Search(
        expand,
        found,
        wiring.first_trainable_name(first),
        start.target if mixed and _opens(model, start.target) else None,
        last,
        random_last,
    )


# -- making the parts ----------------------------------------------------------------------------------------


def _parts(model: nn.Module, found: _Boundary) -> tuple[Backbone, Head]:
    before = prefix_steps(found.evaluating, found.position)
    after = head_steps(found.evaluating, found.position)
    after_training = head_steps(found.training, found.training_position)
    state = found.training.state | found.evaluating.state

    in_head = _used(model, state, after, after_training)
    return Backbone(model, *_used(model, state, before), before), Head(model, *in_head, after, after_training)


def _used(model: nn.Module, state: Mapping[str, Any], *parts: Sequence[Step]) -> tuple[list[str], dict[str, Any]]:
    """The modules that steps call, in the model's order, and the parameters and constants that they read."""
    steps = [step for part in parts for step in part]
    calls = {step.target for step in steps if step.kind == "call"}
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name in calls]
    return names, {step.target: state[step.target] for step in steps if step.kind == "state"}


def _check_exact(model: nn.Module, backbone: Backbone, head: Head, inputs: tuple[Tensor, ...]) -> None:
    """Runs both on the example and compares; notes whether the head works in place on the features."""
    modes = {module: module.training for module in (*model.modules(), *head.modules())}
    larger = tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)  # not the batch size that was traced
    try:
        model.eval()
        head.eval()
        with torch.no_grad():
            expected = tensors_of(model(*larger))
            features = backbone(*larger)
            version = features._version
            got = tensors_of(head(features))
            head.writes_to_input = features._version != version
    finally:
        for module, mode in modes.items():
            module.training = mode
    if len(expected) != len(got) or not all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)):
        raise CaptureError(
            f"split of {type(model).__name__}: head(backbone(x)) is not model(x) on the example. The forward pass "
            "depends on something that is not in its tensors (random numbers in eval mode, the values of the data, "
            "state kept between calls). Make it deterministic in eval mode, or divide it by hand."
        )


def tensors_of(result: object) -> list[Tensor]:
    """The tensors in what a model returned, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


# -- checks and words ----------------------------------------------------------------------------------------


def _check_freezing(model: nn.Module) -> None:
    name = type(model).__name__
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise InputError(
            f"split of {name}: no parameter requires gradients, so there is no head to train. Unfreeze the part to "
            "train (model.fc.requires_grad_(True)), replace the classifier by a new one, or name the boundary with at=."
        )
    if len(trainable) == sum(1 for _ in model.parameters()):
        raise InputError(
            f"split of {name}: every parameter requires gradients, so there is no frozen backbone. Freeze it "
            "(model.requires_grad_(False), then unfreeze the part to train), or name the boundary with at=."
        )


def _check_name(model: nn.Module, at: str) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if at not in names:
        close = difflib.get_close_matches(at, names, n=5, cutoff=0.5)
        top = [name for name, _ in model.named_children()]
        hint = f"Did you mean {_some(close)}?" if close else f"Its modules are {_some(top)}."
        raise InputError(f"split of {type(model).__name__}: there is no module {at!r}. {hint}")


def _check_crossing(wiring: Wiring, position: int, at: str) -> None:
    if wiring.crossing_tensor(position) is not None:
        return
    ends = {name: wiring.ends_of(name) for name in wiring.call_names}
    single = [name for name, found in ends.items() if len(found) == 1 and wiring.crossing_tensor(found[0]) is not None]
    nearest = sorted(single, key=lambda name: abs(ends[name][0] - position))[:4]
    raise CaptureError(
        f"split of {wiring.model_name} at {at!r}: {wiring.describe(wiring.crossing(position))}, and a boundary is one "
        f"tensor of floats with the samples first. Choose a module that closes its block, for example "
        f"{_some(sorted(nearest, key=single.index)) or 'an outer one'}."
    )


def _as_inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(item, Tensor) and item.ndim >= 1 and len(item) for item in inputs):
        raise InputError("split: example must be a tensor, or a tuple of tensors, with the samples first.")
    return tuple(torch.cat([item, item]) if len(item) == 1 else item for item in inputs)


def _under(name: str, containers: Sequence[str]) -> bool:
    return any(name == container or name.startswith(f"{container}.") for container in containers)


def _is_stateless(module: nn.Module) -> bool:
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def _opens(model: nn.Module, name: str) -> bool:
    return any(True for _ in callable_children(model.get_submodule(name), name))


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, ..." if len(names) > most else shown or "none"
