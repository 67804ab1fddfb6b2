"""The profile of a job, from measurements: of this machine alone, or of a storage server, this machine and the link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from hapi.data import TransformSpec
from hapi.model import Graph
from hapi.plan import Link, Profile
from hapi.wire.allowed import Allowed
from profiler.head import head_seconds
from profiler.link import probe_link
from profiler.loading import DEFAULT_SAMPLES, LoadCost, load_examples, measure_decoding
from profiler.measuring import measure
from profiler.remote import ServerClient
from profiler.tier import TierProfile, combine


class Listing(Protocol):
    """A dataset that a server has listed: its digest, how many samples and stored bytes, and the labels' names."""

    @property
    def digest(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def classes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Job:
    """What is planned for, and how its client works.

    Attributes:
        samples: of one epoch.
        batch_size, epochs: of the training.
        classes: of the head; 0 if that is not known.
        device: the client's.
        allowed: in which codecs and compressions features may travel.
        kept_share: part of the samples whose features the client keeps after the first epoch.
        repeats, limit_seconds: timed runs on this device, and after how long no further one is begun.
    """

    samples: int = 0
    batch_size: int = 256
    epochs: int = 1
    classes: int = 0
    device: torch.device | str = "cpu"
    allowed: Allowed = field(default_factory=Allowed)
    repeats: int = 5
    limit_seconds: float = 20.0
    kept_share: float = 0.0


def profile_here(graph: Graph, load: LoadCost, job: Job, examples: torch.Tensor | None = None) -> Profile:
    """This device plays both tiers: what a server like this machine would give. The profile has no link.

    `examples` are inputs (n, ...) of real samples, on whose features compression is measured.
    """
    tier = _measured(graph, load, job, examples)
    return _profile(graph, tier, tier, job, None, budget_bytes=None)


def profile_with_server(
    server: ServerClient,
    graph: Graph,
    dataset: Listing,
    transform: TransformSpec,
    job: Job,
    *,
    link: Link | None = None,
    samples: int = DEFAULT_SAMPLES,
    workers: int | None = None,
) -> Profile:
    """Lets the server measure itself, and measures this device and, unless it is given, the link.

    Either side decodes up to `samples` of the dataset, this one with `workers` threads (default: one per processor).
    The server must hold the model. Raises what the server answers.
    """
    count = max(2, min(samples, dataset.samples))
    far = server.measure(graph.digest, dataset.digest, transform, count)
    link = link or probe_link(server.link)
    spread = sorted({position * dataset.samples // count for position in range(count)})
    objects = server.objects(dataset.digest, spread)
    decode_seconds = measure_decoding(objects, transform, workers=workers)
    load = LoadCost(decode_seconds, 0.0, decode_seconds, dataset.bytes / dataset.samples)
    near = _measured(graph, load, job, load_examples(objects, transform) if job.allowed.is_choice else None)
    return _profile(graph, far, near, job, link, budget_bytes=server.status().budget_bytes)


def _profile(
    graph: Graph,
    far: TierProfile,
    near: TierProfile,
    job: Job,
    link: Link | None,
    *,
    budget_bytes: int | None,
) -> Profile:
    features = graph.output.shape[-1] if graph.output.shape else 1
    head = head_seconds(features, job.classes, job.batch_size, job.device)
    profile = combine(
        far,
        near,
        samples=job.samples,
        batch_size=job.batch_size,
        epochs=job.epochs,
        model=graph.name,
        head_seconds=head,
        link=link,
        server_memory_bytes=budget_bytes,
        details={"server": _about(far), "client": _about(near), "measured_on_server": link is not None},
    )
    return replace(profile, kept_share=job.kept_share, head_seconds=head)


def _measured(graph: Graph, load: LoadCost, job: Job, examples: torch.Tensor | None = None) -> TierProfile:
    return measure(
        graph,
        device=job.device,
        allowed=job.allowed,
        examples=examples,
        repeats=job.repeats,
        limit_seconds=job.limit_seconds,
        load_seconds=load.load_seconds,
        read_seconds=load.read_seconds,
        decode_seconds=load.decode_seconds,
        input_bytes=load.input_bytes,
    )


def _about(tier: TierProfile) -> dict[str, Any]:
    return {"device": tier.device, "batch_size": tier.batch_size, "load_seconds": tier.load_seconds, **tier.details}
