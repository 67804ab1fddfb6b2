"""Where a model can be divided: after a module that the caller names, or where its freezing says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hapi.errors import CaptureError, InputError
from hapi.model.boundary.tracing import callable_children, trace
from hapi.model.boundary.wiring import Wiring, same_place


@dataclass(frozen=True)
class Boundary:
    """Where the boundary lies in the eval graph and in the train graph (the last position before it in each)."""

    evaluating: Wiring
    training: Wiring
    position: int
    training_position: int


def at_module(model: nn.Module, at: str, inputs: tuple[Tensor, ...]) -> Boundary:
    parts = at.split(".")
    expand = frozenset(".".join(parts[:depth]) for depth in range(len(parts)))
    wiring = Wiring(model, trace(model, inputs, expand=expand, training=lambda name: False))
    name = type(model).__name__
    ends = wiring.ends_of(at)
    if len(ends) != 1:
        inside = [child for child, _ in callable_children(model.get_submodule(at), at)]
        hint = f" It is a list of modules: name one of {some(inside)}." if inside and not ends else ""
        raise CaptureError(
            f"split of {name} at {at!r}: that module is called {len(ends)} times in the forward pass, and a boundary "
            f"needs exactly one.{hint} Modules called in order: {some(wiring.call_names)}."
        )
    position = ends[0]
    _check_crossing(wiring, position, at)
    behind = [p for i in wiring.moving if i <= position for p in wiring.parameters_of(wiring.nodes[i])]
    everything = all(p.requires_grad for p in model.parameters())
    if any(p.requires_grad for p in behind) and not everything:
        trained = [n for n, p in model.named_parameters() if p.requires_grad and any(p is b for b in behind)]
        raise InputError(
            f"split of {name} at {at!r}: {some(trained)} would be in the frozen backbone but requires gradients. "
            f"Freeze it with requires_grad_(False), or choose an earlier boundary."
        )
    if not any(wiring.parameters_of(wiring.nodes[i]) for i in wiring.moving if i > position):
        raise InputError(
            f"split of {name} at {at!r}: no parameter comes after that module, so there is no head to train. "
            f"Choose an earlier module: {some(wiring.call_names[: wiring.call_names.index(at)])}."
        )
    in_head = [node.target for node in wiring.nodes[position + 1 :] if node.kind == "call"]
    training = Wiring(model, trace(model, inputs, expand=expand, training=lambda n: n in expand or _under(n, in_head)))
    where = same_place(wiring, position, training)
    if where is None:
        raise CaptureError(f"split of {name} at {at!r}: in train mode the model runs differently before that module.")
    _check_crossing(training, where, at)
    return Boundary(wiring, training, position, where)


def at_freezing(model: nn.Module, inputs: tuple[Tensor, ...], follow_training: bool) -> Boundary:
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
    found: Boundary | None
    first_trainable: str
    mixed: str | None
    """The container that the boundary may lie in: the first trainable call, if some of its parameters are frozen."""
    last_frozen: int
    """The position of the last operator with frozen parameters before the first trainable one."""
    random_last: str | None
    """That operator's module, if it can be looked into and does something random in train mode."""

    def looks_into(self, found: Boundary, container: str | None) -> bool:
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
            found = Boundary(wiring, training, position, where)
            break
    start = wiring.nodes[first]
    mixed = start.kind == "call" and not all(p.requires_grad for p in wiring.parameters_of(start))
    tail = wiring.nodes[last] if frozen else None
    opens = tail is not None and tail.kind == "call" and _opens(model, tail.target)
    random_last = tail.target if tail is not None and opens and wiring.is_random(last, randomness) else None
    return _Search(
        expand,
        found,
        wiring.first_trainable_name(first),
        start.target if mixed and _opens(model, start.target) else None,
        last,
        random_last,
    )


def _check_crossing(wiring: Wiring, position: int, at: str) -> None:
    if wiring.crossing_tensor(position) is not None:
        return
    ends = {name: wiring.ends_of(name) for name in wiring.call_names}
    single = [name for name, found in ends.items() if len(found) == 1 and wiring.crossing_tensor(found[0]) is not None]
    nearest = sorted(single, key=lambda name: abs(ends[name][0] - position))[:4]
    raise CaptureError(
        f"split of {wiring.model_name} at {at!r}: {wiring.describe(wiring.crossing(position))}, and a boundary is one "
        f"tensor of floats with the samples first. Choose a module that closes its block, for example "
        f"{some(sorted(nearest, key=single.index)) or 'an outer one'}."
    )


def _under(name: str, containers: Sequence[str]) -> bool:
    return any(name == container or name.startswith(f"{container}.") for container in containers)


def _is_stateless(module: nn.Module) -> bool:
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def _opens(model: nn.Module, name: str) -> bool:
    return any(True for _ in callable_children(model.get_submodule(name), name))


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few of a list of names, for a message."""
    shown = ", ".join(names[:most])
    return f"{shown}, ..." if len(names) > most else shown or "none"
