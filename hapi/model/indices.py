"""Indices within bounds, checked before an operation reads by them.

A CPU kernel would raise an IndexError in its own words. A GPU kernel would stop the whole process's work on that
device for good, so that one wrong token id, or one archive made to do harm, would take a server down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hapi.errors import InputError
from hapi.model.node import Node
from hapi.model.ops import named

READERS = frozenset(
    f"aten.{name}"
    for name in (
        "embedding.default", "gather.default", "index.Tensor", "index_put.default", "index_select.default",
        "scatter.src", "scatter.value",
    )
)  # fmt: skip
"""Operations that read or write where a tensor of integers says."""


def check_indices(node: Node, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raises InputError naming the node when an index is out of range; on a GPU this waits for the indices."""
    for index, low, size in _reads(node.op, named(node.op, args, kwargs)):
        if index.numel() and index.device.type != "meta":
            least, most = (int(bound) for bound in torch.aminmax(index))
            if least < low or most >= size:
                raise InputError(
                    f"{node.described} reads by indices from {low} to {size - 1} and was given {least} to {most}. "
                    "Token ids outside the vocabulary are the usual cause."
                )


def _reads(op: str, arguments: dict[str, Any]) -> Iterator[tuple[torch.Tensor, int, int]]:
    """(index, lowest allowed, first no longer allowed) of each tensor of indices."""
    if op == "aten.embedding.default":
        yield arguments["indices"], 0, arguments["weight"].shape[0]
    elif "indices" in arguments:
        # The k-th index is for the k-th dimension; these two count from the end too.
        for size, index in zip(arguments["self"].shape, arguments["indices"], strict=False):
            if index is not None:
                yield index, -size, size
    else:
        source = arguments["self"]
        yield arguments["index"], 0, source.shape[arguments["dim"]] if source.dim() else 1
