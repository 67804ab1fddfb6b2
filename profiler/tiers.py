"""The profile of a job, from measurements: of this machine alone, or of a storage server, this machine and the link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import torch

from hapi.data import TransformSpec, load_sample
from hapi.data.decoding import loader_for
from hapi.engine import Choice, Precision, shared_compiler
from hapi.machine import machine_name, processors
from hapi.model import Graph
from hapi.plan import Link, Profile
from hapi.wire.allowed import Allowed
from profiler.compiled import with_compiled
from profiler.head import head_seconds
from profiler.link import probe_in_turn
from profiler.loading import DEFAULT_SAMPLES, LoadCost, load_examples, measure_decoding, with_loading
from profiler.measurements import Measurements
from profiler.measuring import measure, measured_with
from profiler.remote import ServerClient
from profiler.tier import TierProfile, combine

OBJECT_SECONDS, LEAST_OBJECTS = 2.0, 4
"""How long objects may cross the link so that decoding them can be measured, and how many do at the least."""

Value = TypeVar("Value")


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
        engine: of the client, see `measure`; precision: of both tiers.
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
    engine: Choice = "auto"
    precision: Precision = "float32"


def profile_here(graph: Graph, load: LoadCost, job: Job, examples: torch.Tensor | None = None) -> Profile:
    """This device plays both tiers: what a server like this machine would give. The profile has no link.

    `examples` are inputs (n, ...) of real samples, on whose features compression is measured.
    """
    tier = _with_compiled(_measured(graph, load, job, examples), graph, job)
    head = _Kept(None, False).head(graph, job)
    return _profile(graph, tier, tier, job, None, head=head, budget_bytes=None)


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
    remembered: Measurements | None = None,
    refresh: bool = False,
) -> Profile:
    """Lets the server measure itself, and measures this device and, unless it is given, the link.

    Either side decodes up to `samples` of the dataset, this one with `workers` threads (default: one per processor).
    Measurements of this device are taken from `remembered` and kept there; the server keeps its own. `refresh` has all
    of them made anew. The link is always measured. The server must hold the model. Raises what the server answers.
    Tiers on one machine, in whatever namespaces or containers, are measured one after the other.
    """
    kept = _Kept(remembered, refresh)
    link = link or probe_in_turn(server.link)

    def far_side() -> TierProfile:
        count = max(2, min(samples, dataset.samples))
        return server.measure(graph.digest, dataset.digest, transform, count, refresh=refresh, precision=job.precision)

    def near_side() -> tuple[TierProfile, float]:
        objects = _Objects(server, dataset, samples, link)
        load = kept.load(objects, transform, workers or processors(), job.device)
        return kept.graph(graph, load, job, objects, transform), kept.head(graph, job)

    status = server.status()
    is_here = _is_local(server.url) or bool(status.machine and status.machine == machine_name())
    if is_here:  # two measurements on one machine would measure each other
        far, (near, head) = far_side(), near_side()
    else:
        with ThreadPoolExecutor(1, thread_name_prefix="hapi-measure") as pool:
            answer = pool.submit(far_side)
            near, head = near_side()
            far = answer.result()
    return _profile(graph, far, near, job, link, head=head, budget_bytes=status.budget_bytes)


class _Objects:
    """Some stored objects, spread over a dataset, that cross the link once, and only if they are needed.

    At most `samples`; fewer over a slow link, so that planning for it does not cost more than it saves.
    """

    def __init__(self, server: ServerClient, dataset: Listing, samples: int, link: Link) -> None:
        seconds_each = 8 * dataset.bytes / max(1, dataset.samples) / max(1.0, link.bandwidth_bits_per_s)
        in_time = int(OBJECT_SECONDS / seconds_each) if seconds_each > 0 else samples
        count = max(2, min(samples, max(LEAST_OBJECTS, in_time), dataset.samples))
        self.dataset, self.asked = dataset, samples
        self.indices = sorted({position * dataset.samples // count for position in range(count)})
        self._server = server
        self._objects: list[bytes] | None = None

    def get(self) -> list[bytes]:
        if self._objects is None:
            self._objects = self._server.objects(self.dataset.digest, self.indices)
        return self._objects


class _Kept:
    """This device's measurements, each made unless it is remembered."""

    def __init__(self, remembered: Measurements | None, refresh: bool) -> None:
        self._remembered, self._refresh = remembered, refresh

    def graph(self, graph: Graph, load: LoadCost, job: Job, objects: _Objects, transform: TransformSpec) -> TierProfile:
        """All that is left after each cut; where there are codecs to choose from, also what they cost on real data."""

        def measured() -> TierProfile:
            examples = load_examples(objects.get(), transform) if job.allowed.is_choice else None
            return _measured(graph, LoadCost(), job, examples)

        data = {"dataset": objects.dataset.digest, "transform": transform.to_json()} if job.allowed.is_choice else {}
        key = {**measured_with(graph.digest, job.device), "allowed": asdict(job.allowed), **data}
        key["compressions"] = job.allowed.compressions  # those that `auto` stood for
        key |= {"engine": job.engine, "precision": job.precision}
        tier = self._get(key, measured, TierProfile.to_json, TierProfile.from_json)
        return with_loading(_with_compiled(tier, graph, job), load)

    def head(self, graph: Graph, job: Job) -> float:
        features = graph.output.shape[-1] if graph.output.shape else 1
        shape = {"features": features, "classes": job.classes, "batch": job.batch_size}
        return self._get(
            {**measured_with("", job.device), "what": "head", **shape},
            lambda: head_seconds(features, job.classes, job.batch_size, job.device),
            float,
            float,
        )

    def load(self, objects: _Objects, transform: TransformSpec, workers: int, device: torch.device | str) -> LoadCost:
        """Decoding; the objects for that need not cross the link again once it is known."""
        dataset = objects.dataset
        key = {"dataset": dataset.digest, "transform": transform.to_json(), "samples": objects.asked}
        load = loader_for(workers, device)
        way = {"workers": workers, "in_processes": load is not load_sample}
        seconds = self._get(
            {**measured_with("", "cpu"), "what": "decoding", **way, **key},
            lambda: measure_decoding(objects.get(), transform, workers=workers, load=load),
            float,
            float,
        )
        return LoadCost(seconds, 0.0, seconds, dataset.bytes / dataset.samples)

    def _get(
        self,
        key: dict[str, Any],
        measure: Callable[[], Value],
        to_json: Callable[[Value], Any],
        from_json: Callable[[Any], Value],
    ) -> Value:
        if self._remembered is None:
            return measure()
        return self._remembered.get(key, measure, to_json=to_json, from_json=from_json, refresh=self._refresh)[0]


def _is_local(url: str) -> bool:
    """Whether a server is on this machine, as far as its address tells."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _profile(
    graph: Graph,
    far: TierProfile,
    near: TierProfile,
    job: Job,
    link: Link | None,
    *,
    head: float,
    budget_bytes: int | None,
) -> Profile:
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
    tier = measure(
        graph,
        device=job.device,
        allowed=job.allowed,
        examples=examples,
        repeats=job.repeats,
        limit_seconds=job.limit_seconds,
        engine=job.engine,
        precision=job.precision,
    )
    return with_loading(tier, load)


def _with_compiled(tier: TierProfile, graph: Graph, job: Job) -> TierProfile:
    if job.engine == "eager":
        return tier
    return with_compiled(tier, graph, shared_compiler(), job.precision, torch.get_num_threads())


def _about(tier: TierProfile) -> dict[str, Any]:
    return {"device": tier.device, "batch_size": tier.batch_size, "load_seconds": tier.load_seconds, **tier.details}
