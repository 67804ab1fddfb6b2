"""What tenants want: a network up to a cut, over some photographs; each with a token of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hapi.data import TransformSpec, describe_transform
from hapi.model import Cut, Graph, capture
from hapi.model.zoo import load_model

MODELS = ("mobilenet_v2", "resnet18", "alexnet", "squeezenet1_1", "resnet50", "densenet121", "vgg11", "vit_b_16")
DEPTHS = (1.0, 0.8, 0.6, 0.9, 0.7)
"""Where networks are cut, as parts of their cuts; the first round of tenants takes the first, and so on."""
MOST_CUT_BYTES = 2**20
"""Cuts with more than that per sample are left out: here the server is measured, not the client's receiving."""


@dataclass(frozen=True)
class Network:
    """A captured backbone and how photographs become its input."""

    graph: Graph
    transform: TransformSpec

    @classmethod
    def load(cls, name: str) -> Network:
        """A network of the zoo (torchvision's unless it says otherwise), with random weights."""
        model = load_model(name if ":" in name else f"torchvision:{name}", "none")
        graph = capture(model.backbone, model.example, name=name.removeprefix("torchvision:"))
        return cls(graph, describe_transform(model.transform))

    def cut_at(self, depth: float) -> Cut:
        """The light cut next to this part of the network."""
        light = [cut for cut in self.graph.cuts[1:] if cut.bytes_per_sample <= MOST_CUT_BYTES]
        wanted = depth * (len(self.graph.cuts) - 1)
        return min(light, key=lambda cut: abs(cut.index - wanted))


@dataclass(frozen=True)
class Task:
    """A prefix: what tenants with equal tasks could share."""

    network: Network
    cut: str

    @property
    def name(self) -> str:
        return f"{self.network.graph.name} up to {self.cut}"


@dataclass(frozen=True)
class TenantJob:
    """One tenant's job."""

    tenant: str
    task: Task
    indices: tuple[int, ...]

    @property
    def samples(self) -> int:
        return len(self.indices)


def tasks(networks: Sequence[Network], wanted: int) -> list[Task]:
    """Different tasks, as many as wanted if the networks have them: first every network whole, then shallower cuts."""
    found: dict[tuple[str, str], Task] = {}
    for round_number in range(len(DEPTHS)):
        for network in networks:
            for cut in _candidates(network, round_number):
                if (network.graph.digest, cut.name) not in found:
                    found[network.graph.digest, cut.name] = Task(network, cut.name)
                    break
    return list(found.values())[:wanted]


def _candidates(network: Network, round_number: int) -> Iterator[Cut]:
    """The cut of this round, then those around it: networks with few cuts give what they have."""
    first = network.cut_at(DEPTHS[round_number])
    light = [cut for cut in network.graph.cuts[1:] if cut.bytes_per_sample <= MOST_CUT_BYTES]
    return iter(sorted(light, key=lambda cut: abs(cut.index - first.index)))
