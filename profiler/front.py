"""`hapi.profile`: from a backbone and its data to the profile that the planner reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from hapi.data import Manifest, TransformSpec, build_manifest, dataset_root, describe_transform, open_store
from hapi.errors import InputError
from hapi.model import Graph, capture, load_model
from hapi.plan import Link, Profile
from profiler.link import probe_link
from profiler.loading import DEFAULT_SAMPLES, LoadCost, measure_decoding, measure_loading
from profiler.measuring import measure
from profiler.remote import RemoteTier
from profiler.tier import TierProfile, combine

HEAD_CLASSES = 1000
"""Classes of the head that is timed when the data does not say how many it has."""


def profile(
    backbone: Graph | nn.Module | str,
    data: str | os.PathLike[str] | None = None,
    *,
    transform: Any = None,
    example: torch.Tensor | None = None,
    weights: str | None = "DEFAULT",
    server: str | None = None,
    token: str | None = None,
    bandwidth: float | None = None,
    latency: float | None = None,
    batch_size: int = 256,
    epochs: int = 1,
    samples: int | None = None,
    measured_samples: int = DEFAULT_SAMPLES,
    device: torch.device | str = "cpu",
    codec: str = "float32",
) -> Profile:
    """Measures what every cut of a backbone costs.

    Args:
        backbone: a captured graph, a module (then `example` is needed), or a name such as `torchvision:resnet18`.
        data: address of the dataset: its stored sizes count, and some of its samples are read and decoded. Without it,
            reading and decoding count as nothing and `input` ships tensors.
        transform: what turns an image into the backbone's input; by default the named model's own.
        example: one input (batch, ...) to capture a module with.
        weights: for a backbone by name: `DEFAULT`, `none`, or a safetensors file.
        server, token: a storage server that measures itself; its link is measured too. Without one, this device plays
            both tiers: the profile then says what a server like this machine would give.
        bandwidth, latency: of the link, bits per second and seconds, instead of measuring it.
        batch_size, epochs, samples: of the job that is planned; samples by default those of the data.
        measured_samples: how many samples are read and decoded to measure that.
        device: the client's.
        codec: in which features travel.

    Raises:
        InputError: something does not fit together; further what capturing, the store and the server raise.
    """
    subject = _Subject.of(backbone, transform, example, weights)
    if server is not None:
        if data is None:
            raise InputError("a server measures itself on data that it can read: give data=, an address on its side.")
        near, far, found = _two_tiers(subject, os.fspath(data), server, token, measured_samples, device, codec)
        link = found.link
    else:
        near, found = _one_tier(subject, data, measured_samples, device, codec)
        far, link = near, None
    if bandwidth is not None:
        link = Link(bandwidth, link.latency_seconds if link else 0.0)
    if latency is not None and link is not None:
        link = Link(link.bandwidth_bits_per_s, latency)
    features = subject.graph.output.shape[-1] if subject.graph.output.shape else 1
    return combine(
        far,
        near,
        link=link,
        samples=found.samples if samples is None else samples,
        batch_size=batch_size,
        epochs=epochs,
        model=subject.graph.name,
        head_seconds=head_seconds(features, found.classes or HEAD_CLASSES, batch_size, device),
        server_memory_bytes=found.server_memory_bytes,
        details={"server": _about(far), "client": _about(near), "measured_on_server": server is not None},
    )


@dataclass(frozen=True)
class _Subject:
    graph: Graph
    transform: TransformSpec | None

    @classmethod
    def of(
        cls, backbone: Graph | nn.Module | str, transform: Any, example: torch.Tensor | None, weights: str | None
    ) -> _Subject:
        if isinstance(backbone, str):
            model = load_model(backbone, weights)
            graph = capture(model.backbone, model.example, name=model.name)
            transform = model.transform if transform is None else transform
        elif isinstance(backbone, Graph):
            graph = backbone
        elif example is None:
            raise InputError("a module is captured with an example of its input: give example=, a tensor (2, C, H, W).")
        else:
            graph = capture(backbone, example)
        return cls(graph, None if transform is None else describe_transform(transform))

    def needed_transform(self) -> TransformSpec:
        if self.transform is None:
            raise InputError("reading data needs transform=: what turns an image into the backbone's input.")
        return self.transform


@dataclass(frozen=True)
class _Found:
    """What was learnt beside the two tiers."""

    samples: int = 0
    classes: int = 0
    link: Link | None = None
    server_memory_bytes: int | None = None


def _one_tier(
    subject: _Subject, data: str | os.PathLike[str] | None, samples: int, device: torch.device | str, codec: str
) -> tuple[TierProfile, _Found]:
    load, found = LoadCost(), _Found()
    if data is not None:
        manifest = build_manifest(data)
        load = _load(manifest, data, subject.needed_transform(), samples)
        found = _Found(len(manifest), len(manifest.classes))
    return _measured(subject.graph, load, device, codec), found


def _two_tiers(
    subject: _Subject,
    data: str,
    server: str,
    token: str | None,
    samples: int,
    device: torch.device | str,
    codec: str,
) -> tuple[TierProfile, TierProfile, _Found]:
    """(client, server, the rest)."""
    transform = subject.needed_transform()
    with RemoteTier(server, token) as remote:
        budget = remote.status().budget_bytes
        dataset = remote.register(data)
        count = max(2, min(samples, dataset.samples))
        model = remote.ensure_model(subject.graph)
        far = remote.measure(model, dataset.digest, transform, count)
        link = probe_link(remote.fetch)
        spread = sorted({position * dataset.samples // count for position in range(count)})
        decode_seconds = measure_decoding(remote.objects(dataset.digest, spread), transform)
    load = LoadCost(decode_seconds, 0.0, decode_seconds, dataset.bytes / dataset.samples)
    near = _measured(subject.graph, load, device, codec)
    return near, far, _Found(dataset.samples, len(dataset.classes), link, budget)


def _load(manifest: Manifest, data: str | os.PathLike[str], transform: TransformSpec, samples: int) -> LoadCost:
    store = open_store(dataset_root(data)[0])
    try:
        return measure_loading(store, manifest, transform, samples=samples)
    finally:
        store.close()


def _measured(graph: Graph, load: LoadCost, device: torch.device | str, codec: str) -> TierProfile:
    return measure(
        graph,
        device=device,
        codec=codec,
        load_seconds=load.load_seconds,
        read_seconds=load.read_seconds,
        decode_seconds=load.decode_seconds,
        input_bytes=load.input_bytes,
    )


def head_seconds(features: int, classes: int, batch_size: int, device: torch.device | str, repeats: int = 5) -> float:
    """Seconds per sample of one training step of a linear head: the best of a few, after one to warm up."""
    head = nn.Linear(features, classes, device=device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    inputs = torch.randn(batch_size, features, device=device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    taken = []
    with torch.enable_grad():
        for _ in range(repeats + 1):
            started = perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for an accelerator
            taken.append(perf_counter() - started)
    return min(taken[1:]) / batch_size


def _about(tier: TierProfile) -> dict[str, Any]:
    return {"device": tier.device, "batch_size": tier.batch_size, "load_seconds": tier.load_seconds, **tier.details}
