"""How many bytes of tensors are alive while a program runs: exact from shapes and last uses, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hapi.model.node import Node, leaves
from hapi.model.specs import Size, ValueSpec


def needed(nodes: Sequence[Node], targets: Sequence[str], given: Sequence[str]) -> tuple[Node, ...]:
    """The nodes that the targets depend on, in order, when the given values need not be computed."""
    wanted = set(targets) - set(given)
    kept = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            kept.append(node)
            wanted.update(set(node.refs()) - set(given))
    return tuple(reversed(kept))


def absent(nodes: Sequence[Node], targets: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Names of what the nodes and targets need, and which is neither given nor made by one of the nodes."""
    there = {*given, *(name for node in nodes for name in node.outputs)}
    wanted = dict.fromkeys((*(name for node in nodes for name in node.refs()), *targets))
    return tuple(name for name in wanted if name not in there)


def frees(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Per node, the values that nobody reads after it; what the program gives back is never among them."""
    seen = set(outputs)
    freed: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        last = tuple(name for name in dict.fromkeys((*node.refs(), *node.outputs)) if name not in seen)
        seen.update(last)
        freed.append(last)
    return tuple(reversed(freed))


def constants(nodes: Sequence[Node]) -> frozenset[str]:
    """The nodes that depend on weights alone: neither on what is given nor on how large the batch is."""
    fixed: set[str] = set()
    values: set[str] = set()
    for node in nodes:
        arguments = (*node.args, *node.kwargs.values())
        is_sized = any(isinstance(leaf, Size) for argument in arguments for leaf in leaves(argument))
        if not is_sized and all(name in values for name in node.refs()):
            fixed.add(node.name)
            values.update(node.outputs)
    return frozenset(fixed)


class Ledger:
    """Bytes alive now. A view weighs nothing and keeps alive the storage that it shows; a view of a weight is free."""

    def __init__(self, specs: Mapping[str, ValueSpec], batch: int) -> None:
        self.total = 0
        self._specs, self._batch = specs, batch
        self._storage: dict[str, str] = {}
        self._users: dict[str, int] = {}
        self._arrived: dict[str, str] = {}

    def arrive(self, name: str, *, copied: bool) -> None:
        """A tensor from outside, which the caller holds to the end; `copied` when it is laid out anew on arrival."""
        self.total += self._specs[name].bytes(self._batch) if copied else 0
        self._arrived.setdefault(self._specs[name].base or name, name)
        self._keep(name, name)
        self._users[name] += 1

    def hold(self, name: str) -> None:
        """A value was made."""
        base = self._specs[name].base
        if base is not None:
            self._keep(name, self._arrived.get(base, base))

    def release(self, name: str) -> None:
        """A value was dropped; its storage goes with the last value that shows it."""
        storage = self._storage.pop(name, None)
        if storage is not None:
            self._users[storage] -= 1
            if not self._users[storage]:
                self.total -= self._specs[storage].bytes(self._batch)

    def _keep(self, name: str, storage: str) -> None:
        self._storage[name] = storage
        users = self._users.get(storage, 0)
        self._users[storage] = users + 1
        if not users:
            self.total += self._specs[storage].bytes(self._batch)
