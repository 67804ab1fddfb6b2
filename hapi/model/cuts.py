"""Where a graph can be divided: liveness after each node, what need not be carried, and which places are worth naming.

After each node, the values that later nodes still read are live. Of these a suffix makes again whatever depends on
weights and the batch size alone, and what a little work makes from the graph's inputs when carrying less is the gain
(an attention mask of 512 x 512 from 512 flags). A place where all that is left has the batch as first dimension
is a cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hapi.model.node import Node
from hapi.model.ops import LIGHT
from hapi.model.remaking import Remaking
from hapi.model.specs import ValueSpec
from hapi.plan import INPUT, OUTPUT

MAX_CARRIED = 4
"""Tensors that one cut may carry."""


@dataclass(frozen=True)
class Cut:
    """A place where the graph can be divided.

    `shapes` (without the batch dimension), `dtypes` and `bytes_per_sample` describe the tensors it carries, in order;
    `values` are their names in the graph. `aliases` are other modules that end at the same place.
    """

    name: str
    index: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    bytes_per_sample: int
    values: tuple[str, ...] = field(repr=False, default=())
    aliases: tuple[str, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class _Place:
    """A position after a node where the graph could be divided."""

    position: int
    values: tuple[str, ...]
    bytes: int
    streams: int
    """Carried values that are not inputs, nor a little something made from them."""
    stream_bytes: int
    names: tuple[str, ...]
    """Modules that end here, outermost first."""
    ends_block: bool
    """Whether one of these modules holds more than one operation."""


def find_cuts(
    inputs: Sequence[str], nodes: Sequence[Node], output: str, specs: Mapping[str, ValueSpec]
) -> tuple[Cut, ...]:
    """All cuts in order, `input` first and `output` last."""
    working = _depending_on_inputs(inputs, nodes)
    places = list(_places(inputs, working, output, specs))
    last = places[-1] if places else None
    chosen = _choose([place for place in places if place is not last], specs, inputs, working, last)
    cuts = [_cut(INPUT, 0, tuple(inputs), specs)]
    taken = {INPUT, OUTPUT}
    for place in chosen:
        name, *aliases = place.names or (_functional_name(working[place.position]),)
        unique = name
        number = 1
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        cuts.append(_cut(unique, len(cuts), place.values, specs, tuple(aliases)))
    known = {alias for cut in cuts for alias in (cut.name, *cut.aliases)}
    aliases_of_output = tuple(name for name in (last.names if last else ()) if name not in known)
    return (*cuts, _cut(OUTPUT, len(cuts), (output,), specs, aliases_of_output))


def _cut(
    name: str, index: int, values: tuple[str, ...], specs: Mapping[str, ValueSpec], aliases: tuple[str, ...] = ()
) -> Cut:
    carried = [specs[value].per_sample for value in values]
    return Cut(
        name=name,
        index=index,
        shapes=tuple(spec.shape for spec in carried),
        dtypes=tuple(spec.dtype for spec in carried),
        bytes_per_sample=sum(spec.bytes for spec in carried),
        values=values,
        aliases=aliases,
    )


def _depending_on_inputs(inputs: Sequence[str], nodes: Sequence[Node]) -> list[Node]:
    """Nodes that read the inputs, directly or not; every other node depends on weights and the batch size alone."""
    reached = set(inputs)
    working = []
    for node in nodes:
        if not reached.isdisjoint(node.refs()):
            reached.update(node.outputs)
            working.append(node)
    return working


def _places(
    inputs: Sequence[str], nodes: Sequence[Node], output: str, specs: Mapping[str, ValueSpec]
) -> Iterator[_Place]:
    """Every position where all carried values are batched and few enough."""
    last_use = {name: position for position, node in enumerate(nodes) for name in node.refs()}
    last_use[output] = len(nodes)
    remaking = Remaking(inputs, nodes, specs)
    ends = _module_ends(nodes)
    live = {name for name in inputs if name in last_use}
    for position, node in enumerate(nodes):
        live.update(node.outputs)
        live = {name for name in live if last_use.get(name, -1) > position}
        streams = {name for name in live if not remaking.can(name)}
        beside = remaking.cheapest(frozenset(live - streams))
        if beside is None or not all(specs[name].is_batched for name in streams):
            continue
        streams |= {name for name in beside if not remaking.is_small(name)}
        values = tuple(sorted(streams | beside, key=lambda name: (name not in streams, remaking.order[name])))
        if len(values) <= MAX_CARRIED:
            names, ends_block = ends[position]
            size, stream_size = (sum(specs[name].per_sample.bytes for name in part) for part in (values, streams))
            yield _Place(position, values, size, len(streams), stream_size, names, ends_block)


def _module_ends(nodes: Sequence[Node]) -> list[tuple[tuple[str, ...], bool]]:
    """Per position, the modules whose last operation is there, outermost first, and whether one of them has several."""
    last: dict[str, int] = {}
    count: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for path in _ancestors(node.module):
            last[path] = position
            count[path] = count.get(path, 0) + 1
    ends = []
    for position, node in enumerate(nodes):
        names = tuple(path for path in _ancestors(node.module) if last[path] == position)
        ends.append((names, any(count[path] > 1 for path in names)))
    return ends


def _ancestors(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _choose(
    places: Sequence[_Place],
    specs: Mapping[str, ValueSpec],
    inputs: Sequence[str],
    nodes: Sequence[Node],
    last: _Place | None,
) -> list[_Place]:
    """The places worth a name: where one stream is left, and wherever fewer bytes are carried than anywhere before."""
    fewest = sum(specs[name].per_sample.bytes for name in inputs)
    start = _Place(-1, tuple(inputs), fewest, 1, fewest, (), False)
    first_work = next((position for position, node in enumerate(nodes) if node.op not in LIGHT), len(nodes))
    chosen: list[_Place] = []
    places = [start, *places, *([last] if last else [])]
    for run in _runs(places, nodes):
        kept = _of_run(run, start, last)
        for place in kept:
            is_neck = place.streams == 1 and (place.position >= first_work or place.bytes < start.bytes)
            if is_neck or (place.bytes < fewest and not _surpassed(place, places, nodes)):
                chosen.append(place)
        fewest = min([fewest, *(place.bytes for place in kept)])
    return chosen


def _surpassed(place: _Place, places: Sequence[_Place], nodes: Sequence[Node]) -> bool:
    """Whether light work alone leads on to a place that carries no more (the addition that ends a residual branch)."""
    for later in places:
        if later.position > place.position:
            if any(node.op not in LIGHT for node in nodes[place.position + 1 : later.position + 1]):
                return False
            if later.bytes <= place.bytes:
                return True
    return False


def _runs(places: Sequence[_Place], nodes: Sequence[Node]) -> Iterator[list[_Place]]:
    """Neighbouring places that carry equally much with only light work between them: all but one are redundant."""
    run: list[_Place] = []
    for place in places:
        joins = (
            run
            and place.position == run[-1].position + 1
            and place.streams == run[-1].streams == 1
            and place.stream_bytes == run[-1].stream_bytes
            and nodes[place.position].op in LIGHT
        )
        if run and not joins:
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _of_run(run: Sequence[_Place], start: _Place, last: _Place | None) -> list[_Place]:
    """Of a run, the ends of blocks; without one, the end of the outermost and latest module; else the last place.

    A run that begins at the input or ends at the output is represented by that, apart from the ends of blocks.
    """
    blocks = [place for place in run if place.ends_block and place is not last]
    if blocks or run[0] is start or run[-1] is last:
        return blocks
    named = [place for place in run if place.names]
    return [min(named, key=lambda place: (place.names[0].count("."), -place.position))] if named else [run[-1]]


def _functional_name(node: Node) -> str:
    """`encoder.layers.0.add` for an operation that ends no module."""
    operation = node.op.split(".")[1].strip("_")
    return f"{node.module}.{operation}" if node.module else operation
