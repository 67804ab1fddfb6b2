"""`hapi.profile`: from a backbone and its data to the profile that the planner reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hapi.data import (
    TransformSpec,
    build_manifest,
    dataset_root,
    describe_transform,
    normalize_uri,
    open_store,
    read_sample,
)
from hapi.data.decoding import loader_for
from hapi.errors import InputError
from hapi.machine import processors
from hapi.model import Graph, capture, load_model
from hapi.plan import Link, Profile
from hapi.wire.allowed import AUTO, NONE, Allowed
from profiler.calibration import calibrated
from profiler.loading import DEFAULT_SAMPLES, LoadCost, load_examples, measure_loading
from profiler.remote import ServerClient
from profiler.tiers import Job, Listing, profile_here, profile_with_server


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
    codecs: Sequence[str] | None = None,
    compression: str = "auto",
    streams: Paces | None = None,
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
        codec: in which features travel; or `codecs`, those among which a plan may choose, the default first.
        compression: `none`, `lz4`, `zstd`, `packed`, or `auto`: measured where there is data, so that a plan may
            choose.
        streams: has a stream run over each cut that could be the best, with both tiers at work, and answers what it
            needs, for the profile: compute_client.streams.contending, some ten seconds a cut (of a slow network a
            minute or more) of a server that has nothing else to do.

    Raises:
        InputError: something does not fit together; further what capturing, the store and the server raise.
    """
    subject = _Subject.of(backbone, transform, example, weights)
    allowed = Allowed(tuple(codecs) if codecs else (codec,), compression)
    if data is None and compression == AUTO:  # nothing is known of the values
        allowed = replace(allowed, compression=NONE)
    job = Job(samples or 0, batch_size, epochs, device=device, allowed=allowed)
    if server is not None:
        if data is None:
            raise InputError("a server measures itself on data that it can read: give data=, an address on its side.")
        found = _with_server(subject, normalize_uri(data), server, token, measured_samples, job, streams=streams)
    elif streams is not None:
        raise InputError("streams run between two tiers: give server=, or leave streams out.")
    else:
        found = _here(subject, data, measured_samples, job)
    link = found.link
    if bandwidth is not None:
        link = Link(bandwidth, link.latency_seconds if link else 0.0)
    if latency is not None and link is not None:
        link = Link(link.bandwidth_bits_per_s, latency)
    return replace(found, link=link)


Paces = Callable[[Profile, ServerClient, str, Graph, TransformSpec, Listing, Job], Mapping[str, float]]
"""What answers the seconds per sample of streams over some cuts of a profile, between a server that has listed the data
at this address, and this process."""


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


def _here(subject: _Subject, data: str | os.PathLike[str] | None, samples: int, job: Job) -> Profile:
    if data is None:
        return profile_here(subject.graph, LoadCost(), job)
    transform = subject.needed_transform()
    manifest = build_manifest(data)
    store = open_store(dataset_root(data)[0])
    try:
        loading = loader_for(processors(), job.device)
        load = measure_loading(store, manifest, transform, samples=samples, load=loading)
        objects = (read_sample(store, manifest.sample(index)) for index in range(min(samples, len(manifest))))
        examples = load_examples(objects, transform) if job.allowed.is_choice else None
    finally:
        store.close()
    job = replace(job, samples=job.samples or len(manifest), classes=len(manifest.classes))
    return profile_here(subject.graph, load, job, examples)


def _with_server(
    subject: _Subject, data: str, server: str, token: str | None, samples: int, job: Job, *, streams: Paces | None
) -> Profile:
    transform = subject.needed_transform()
    with ServerClient(server, token) as client:
        dataset = client.register(data)
        client.ensure_model(subject.graph)
        job = replace(job, samples=job.samples or dataset.samples, classes=len(dataset.classes))
        found = profile_with_server(client, subject.graph, dataset, transform, job, samples=samples)
        if streams is None:
            return found
        assert found.link is not None
        return calibrated(found, streams(found, client, data, subject.graph, transform, dataset, job), found.link)
