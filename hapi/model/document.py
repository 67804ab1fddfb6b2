"""A graph as a JSON document, and strictly back. Everything but the weights; no shapes of values, which are derived.

Arguments are JSON values, with an object of one key for what JSON lacks: `{"ref": name}`, `{"weight": name}`,
`{"size": [per_sample, fixed]}`, `{"dtype": name}`, `{"memory_format": name}`, `{"float": "inf"}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from hapi.errors import ArchiveError
from hapi.model.node import Argument, Node, Ref, Weight
from hapi.model.ops import check_arguments
from hapi.model.specs import Size, TensorSpec, dtype_name

if TYPE_CHECKING:
    from hapi.model.graph import Graph

DTYPES: Mapping[str, torch.dtype] = {
    dtype_name(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
FORMATS: Mapping[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "preserve": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_FORMAT_NAMES = {value: name for name, value in FORMATS.items()}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_MAX_DEPTH = 4
"""Lists within lists in an argument; ATen takes lists of tensors or numbers, so two are enough."""
_MAX_SIZE = 2**40

NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_@.:+-]{1,300}", re.ASCII)
"""What values, weights and modules may be called: nothing that could be read as a path or a control character."""


@dataclass(frozen=True)
class Document:
    """What a document says, checked as far as it can be without the weights."""

    name: str
    inputs: dict[str, TensorSpec]
    nodes: list[Node]
    output: str
    orders: dict[str, tuple[int, ...]]


def encode(graph: Graph) -> bytes:
    """The document of a graph: the same graph gives the same bytes."""
    document = {
        "name": graph.name,
        "inputs": [
            {"name": name, "shape": list(spec.shape), "dtype": dtype_name(spec.dtype)}
            for name, spec in zip(graph.input_names, graph.inputs, strict=True)
        ],
        "nodes": [_encode_node(node) for node in graph.nodes],
        "output": graph.output_name,
        "orders": {name: list(order) for name, order in graph.orders.items()},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _encode_node(node: Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "args": [_encode(arg) for arg in node.args]}
    if node.kwargs:
        entry["kwargs"] = {key: _encode(argument) for key, argument in node.kwargs.items()}
    if node.module:
        entry["module"] = node.module
    if node.outputs != (node.name,):
        entry["results"] = len(node.outputs)
    return entry


def _encode(argument: Argument) -> Any:
    match argument:
        case tuple():
            return [_encode(item) for item in argument]
        case Ref(name):
            return {"ref": name}
        case Weight(name):
            return {"weight": name}
        case Size(per_sample, fixed):
            return {"size": [per_sample, fixed]}
        case torch.dtype():
            return {"dtype": dtype_name(argument)}
        case torch.memory_format():
            return {"memory_format": _FORMAT_NAMES[argument]}
        case float() if not math.isfinite(argument):
            return {"float": str(argument)}
    return argument


def decode(data: bytes, weights: Mapping[str, torch.Tensor], max_nodes: int) -> Document:
    """Reads a document whose references must lead to `weights`, inputs or earlier nodes; raises ArchiveError."""
    document = parse_json(data, "graph")
    _keys(document, "graph", {"name", "inputs", "nodes", "output", "orders"})
    name = document["name"]
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise ArchiveError("graph: its name must be 1 to 200 printable characters.")
    inputs: dict[str, TensorSpec] = {}
    for entry in _list(document["inputs"], "graph inputs", 64):
        _keys(entry, "graph input", {"name", "shape", "dtype"})
        dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise ArchiveError(f"graph input: {str(entry['dtype'])[:80]!r} is not a dtype.")
        inputs[_name(entry["name"], "graph input", inputs)] = TensorSpec(integers(entry["shape"], "graph input"), dtype)
    known = dict.fromkeys(inputs, True)
    nodes = []
    for entry in _list(document["nodes"], "graph nodes", max_nodes):
        node = _decode_node(entry, known, weights)
        known.update(dict.fromkeys(node.outputs, True))
        nodes.append(node)
    if not isinstance(document["output"], str) or document["output"] not in known:
        raise ArchiveError("graph: its output is not one of its values.")
    if not isinstance(document["orders"], dict) or not document["orders"].keys() <= known.keys():
        raise ArchiveError("graph: 'orders' must name values of the graph.")
    orders = {value: integers(order, f"order of {value}") for value, order in document["orders"].items()}
    return Document(name, inputs, nodes, document["output"], orders)


def _decode_node(entry: Any, known: Mapping[str, bool], weights: Mapping[str, torch.Tensor]) -> Node:
    _keys(entry, "node", {"name", "op", "args"}, {"kwargs", "module", "results"})
    name = _name(entry["name"], "node", known)
    where = f"node {name}"
    if not isinstance(entry["op"], str):
        raise ArchiveError(f"{where}: 'op' must be a string.")
    module = entry.get("module", "")
    if module != "":
        _name(module, f"{where}: module", {})
    outputs: tuple[str, ...] = (name,)
    if (results := entry.get("results")) is not None:
        if not isinstance(results, int) or isinstance(results, bool) or not 0 < results <= 1024:
            raise ArchiveError(f"{where}: 'results' must be between 1 and 1024.")
        outputs = tuple(f"{name}.{index}" for index in range(results))
        if clash := [output for output in outputs if output in known]:
            raise ArchiveError(f"{where}: the name {clash[0]} is taken.")
    kwargs = entry.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise ArchiveError(f"{where}: 'kwargs' must be an object.")
    args = tuple(_decode(value, where, known, weights) for value in _list(entry["args"], where, 64))
    named = {key: _decode(value, where, known, weights) for key, value in kwargs.items()}
    try:
        check_arguments(entry["op"], args, named)
    except (LookupError, TypeError) as error:
        raise ArchiveError(f"{where}: {error.args[0]}.") from error
    return Node(name, entry["op"], args, named, module, outputs)


def _decode(
    value: Any, where: str, known: Mapping[str, bool], weights: Mapping[str, torch.Tensor], depth: int = 0
) -> Argument:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and depth < _MAX_DEPTH:
        return tuple(_decode(item, where, known, weights, depth + 1) for item in value)
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind in _TAGS:
            argument = _TAGS[kind](content, known, weights)
            if argument is not None:
                return argument
    raise ArchiveError(f"{where}: {str(value)[:80]!r} is not an argument, or refers to nothing that comes before it.")


def _size(content: Any, _known: Any, _weights: Any) -> Argument:
    per_sample, fixed = (*integers(content, "size", negative=True), None, None)[:2]
    return None if per_sample is None or fixed is None or len(content) != 2 else Size(per_sample, fixed)


_TAGS: dict[str, Callable[[Any, Mapping[str, bool], Mapping[str, torch.Tensor]], Argument]] = {
    "ref": lambda name, known, _: Ref(name) if isinstance(name, str) and name in known else None,
    "weight": lambda name, _, weights: Weight(name) if isinstance(name, str) and name in weights else None,
    "size": _size,
    "dtype": lambda name, *_: DTYPES.get(name) if isinstance(name, str) else None,
    "memory_format": lambda name, *_: FORMATS.get(name) if isinstance(name, str) else None,
    "float": lambda name, *_: _FLOATS.get(name) if isinstance(name, str) else None,
}


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from UTF-8 bytes, without repeated keys, infinities or bottomless nesting; raises ArchiveError."""
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where}: not valid JSON ({str(error)[:200]}).") from error
    if not isinstance(document, dict):
        raise ArchiveError(f"{where}: must be a JSON object.")
    return document


def integers(value: Any, where: str, negative: bool = False) -> tuple[int, ...]:
    """A list of a few bounded integers; raises ArchiveError."""
    numbers = _list(value, where, 16)
    if not all(type(n) is int and (negative or n >= 0) and abs(n) <= _MAX_SIZE for n in numbers):
        raise ArchiveError(f"{where}: must be a list of sizes, got {str(value)[:80]}.")
    return tuple(numbers)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _keys(entry: Any, where: str, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    if not isinstance(entry, dict) or not required <= entry.keys() <= required | optional:
        raise ArchiveError(f"{where}: must be an object with the keys {', '.join(sorted(required))}.")


def _list(value: Any, where: str, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ArchiveError(f"{where}: must be a list of at most {limit}.")
    return value


def _name(value: Any, where: str, taken: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ArchiveError(f"{where}: {str(value)[:80]!r} is not a name.")
    if value in taken:
        raise ArchiveError(f"{where}: the name {value} is taken.")
    return value
