"""Making an exported program pure: operations that write to their input become the pure ones, and later uses follow.

torch.export can do this itself (`run_decompositions`) by tracing the whole program once more, which takes two to four
times as long as the export did. What networks really do in place is little: activations, sums, now and then a fill of a
slice. Here a value is known by the storage that it shows and by the views that lead to it from the storage's owner. A
write makes a new value of the owner, and every other view of it is taken anew where it is next used. Whatever is not
understood raises NotPureError, and the caller goes the long way.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from hapi.model.specs import memory_order

_aten = torch.ops.aten

_SCATTERS: Mapping[Any, Any] = {
    _aten.slice.Tensor: _aten.slice_scatter.default,
    _aten.select.int: _aten.select_scatter.default,
}
"""View -> what writes a value back through it: takes the owner, the value, and the view's other arguments."""
_RESHAPES = (
    _aten.alias.default,
    _aten.detach.default,
    _aten.flatten.using_ints,
    _aten.reshape.default,
    _aten.squeeze.dim,
    _aten.unsqueeze.default,
    _aten.view.default,
)
"""Views of every element in the same order: a reshape of the value gives the owner."""

_DROPOUTS = (_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default, _aten.alpha_dropout.default)
_CASTS = (_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other)


class NotPureError(Exception):
    """A program that writes in a way that is not followed here."""


@dataclass
class _Storage:
    """Some memory: `value` is that of the tensor that owns it, after so many writes."""

    value: fx.Node
    is_ours: bool
    writes: int = 0


@dataclass
class _Alias:
    """What a node of the old graph shows: its storage through `views` (old nodes; none for the owner itself).

    `value` is the node of the new graph that has its content after so many writes.
    """

    storage: _Storage
    views: tuple[fx.Node, ...]
    value: fx.Node
    writes: int


def pure_graph(old: fx.Graph) -> fx.Graph:
    """The exported graph again, without operations that write. Its nodes keep their names, metadata and order.

    Raises NotPureError for a write to an input or a weight, through a view other than a slice, or by an operation that
    has no pure twin.
    """
    return _Purifier().run(old)


class _Purifier:
    def __init__(self) -> None:
        self._new = fx.Graph()
        self._aliases: dict[fx.Node, _Alias] = {}
        self._others: dict[fx.Node, fx.Node] = {}  # what is no tensor: sizes, lists of tensors

    def run(self, old: fx.Graph) -> fx.Graph:
        for node in old.nodes:
            if node.op == "call_function":
                self._call(node)
            else:
                copied = self._new.node_copy(node, self._present)
                if isinstance(node.meta.get("val"), torch.Tensor):
                    self._owner(node, copied, is_ours=False)
                else:
                    self._others[node] = copied
        return self._new

    def _present(self, node: fx.Node) -> fx.Node:
        """The new node with the present content of an old one; a view of what was written to is taken again."""
        alias = self._aliases.get(node)
        if alias is None:
            return self._others[node]
        if alias.writes < alias.storage.writes:
            alias.value = self._through(alias.storage, alias.views)
            alias.writes = alias.storage.writes
        return alias.value

    def _through(self, storage: _Storage, views: tuple[fx.Node, ...]) -> fx.Node:
        value = storage.value
        for view in views:
            value = self._again(view, value)
        return value

    def _again(self, view: fx.Node, source: fx.Node) -> fx.Node:
        args = self._arguments(view.args[1:])
        return self._emit(view, view.target, (source, *args), self._arguments(view.kwargs))

    def _arguments(self, arguments: Any) -> Any:
        return map_arg(arguments, self._present)

    def _emit(self, old: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        """A new call, at the place of an old node, with what it gives found on the tensors of the export."""
        node = self._new.create_node("call_function", target, args, dict(kwargs), name=old.name)
        tensors = tree_map_only(fx.Node, lambda one: one.meta["val"], (node.args, node.kwargs))
        with _fake_mode(tensors):
            node.meta = {**old.meta, "val": target(*tensors[0], **tensors[1])}
        return node

    def _call(self, node: fx.Node) -> None:
        if not isinstance(node.target, torch._ops.OpOverload):
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                raise NotPureError(f"{node.target} runs another graph")
            self._read(node)
        elif node.target in _DROPOUTS and node.args[2] is False:
            self._aliases[node] = self._aliases[_source(node)]
        elif node.target in _CASTS:
            self._cast(node)
        elif node.target._schema.is_mutable:
            self._write(node, node.target)
        else:
            self._read(node)

    def _read(self, node: fx.Node) -> None:
        """A call that writes nothing. Its result is a view of its first argument, or memory of its own."""
        copied = self._new.node_copy(node, self._present)
        shown = _storages(node)
        for source in node.all_input_nodes:
            if shown & _storages(source):
                if source is not node.args[0]:
                    raise NotPureError(f"{node.target} shows an argument that is not its first")
                self._view(node, source, copied)
                return
        if isinstance(node.meta.get("val"), torch.Tensor):
            self._owner(node, copied)
        else:
            self._others[node] = copied

    def _view(self, node: fx.Node, source: fx.Node, copied: fx.Node) -> None:
        origin = self._aliases.get(source)
        if origin is None:  # one of several results, each with memory of its own
            self._owner(node, copied)
        else:
            self._aliases[node] = _Alias(origin.storage, (*origin.views, node), copied, origin.storage.writes)

    def _owner(self, node: fx.Node, copied: fx.Node, *, is_ours: bool = True) -> None:
        self._aliases[node] = _Alias(_Storage(copied, is_ours), (), copied, 0)

    def _cast(self, node: fx.Node) -> None:
        """`to` gives back its input when nothing changes, and otherwise a copy."""
        source, value = _source(node), node.meta["val"]
        if _storages(node) & _storages(source):
            self._aliases[node] = self._aliases[source]
            return
        if node.kwargs.get("memory_format") is not None or len(node.args) > _CASTS_ARGUMENTS[node.target]:
            raise NotPureError(f"{node.target} changes the memory layout")
        changed = {} if value.dtype == source.meta["val"].dtype else {"dtype": value.dtype}
        self._owner(node, self._emit(node, _aten._to_copy.default, (self._present(source),), changed))

    def _write(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        source = _source(node)
        alias = self._aliases.get(source)
        if alias is None or not alias.storage.is_ours:
            raise NotPureError(f"{target} writes to an input or a weight")
        written = self._emit(node, _pure_twin(target), self._arguments(node.args), self._arguments(node.kwargs))
        if not _is_alike(written.meta["val"], node.meta["val"]):
            raise NotPureError(f"{target} keeps a dtype, shape or layout that its pure twin does not")
        value, storage = written, alias.storage
        for depth in range(len(alias.views) - 1, -1, -1):
            value = self._scattered(alias.views[depth], self._through(storage, alias.views[:depth]), value)
        storage.value = value
        storage.writes += 1
        alias.value, alias.writes = written, storage.writes
        self._aliases[node] = alias

    def _scattered(self, view: fx.Node, owner: fx.Node, value: fx.Node) -> fx.Node:
        """The owner of a view after the view became `value`."""
        if view.target in _SCATTERS:
            args = (owner, value, *self._arguments(view.args[1:]))
            result = self._emit(view, _SCATTERS[view.target], args, self._arguments(view.kwargs))
        elif view.target in _RESHAPES:
            result = self._emit(view, _aten.reshape.default, (value, self._sizes(view, owner)), {})
        elif view.target is _aten.transpose.int:
            result = self._emit(view, view.target, (value, *view.args[1:]), {})
        else:
            raise NotPureError(f"a write through {view.target}")
        if not _is_alike(result.meta["val"], owner.meta["val"]):
            raise NotPureError(f"a write through {view.target} that changes the memory layout")
        return result

    def _sizes(self, old: fx.Node, tensor: fx.Node) -> list[Any]:
        """The shape of a new node; sizes that depend on the batch as nodes of their own."""
        return [
            size if isinstance(size, int) else self._emit(old, _aten.sym_size.int, (tensor, dim), {})
            for dim, size in enumerate(tensor.meta["val"].shape)
        ]


_CASTS_ARGUMENTS: Mapping[Any, int] = {
    _aten.to.dtype: 2,
    _aten.to.device: 3,
    _aten.to.dtype_layout: 1,
    _aten.to.other: 2,
}
"""More positional arguments than these (after the kind of result: non_blocking, copy, layout) are not understood."""


def _source(node: fx.Node) -> fx.Node:
    """The tensor that an operation reads first, changes or shows."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise NotPureError(f"{node.target} has no tensor as its first argument")
    return source


def _storages(node: fx.Node) -> set[int]:
    """Of the tensors that a node gives. Tensors in the metadata of an export share storages as the real ones do."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return {one.untyped_storage()._cdata for one in values if isinstance(one, torch.Tensor)}


def _pure_twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """`relu` for `relu_`: the operation that takes the same and gives its result in new memory."""
    name, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    packet = getattr(_aten, name.removesuffix("_"), None) if name.endswith("_") and not name.endswith("__") else None
    twin = getattr(packet, overload, None)
    if (
        twin is None
        or twin._schema.is_mutable
        or torch.Tag.inplace_view in target.tags
        or [(a.name, str(a.type)) for a in twin._schema.arguments]
        != [(a.name, str(a.type)) for a in target._schema.arguments]
        or [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        != [target._schema.arguments[0].name]
    ):
        raise NotPureError(f"{target} has no pure twin")
    return twin


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results are the same to those who read them: layout, too, on which the last bit may depend."""
    return (one.dtype, one.shape, memory_order(one)) == (other.dtype, other.shape, memory_order(other))


def _fake_mode(tensors: Any) -> AbstractContextManager[Any]:
    """The mode of the export that the tensors are from."""
    modes = (getattr(leaf, "fake_mode", None) for leaf in tree_leaves(tensors))
    return next((mode for mode in modes if mode is not None), nullcontext())
