"""What passes over the graphs of PyTorch's compiler share."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass


class InOrder(CustomGraphPass):
    """Several passes as one."""

    def __init__(self, *passes: CustomGraphPass) -> None:
        self._passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        for each in self._passes:
            each(graph)

    def uuid(self) -> Any:
        return [each.uuid() for each in self._passes]


def constant(node: object) -> torch.Tensor | None:
    """The tensor that a node of a frozen graph stands for, if it is of the module and not computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, torch.Tensor) else None
