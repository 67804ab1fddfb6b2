"""Streams over the cuts that could be the best: what `hapi profile --streams` adds to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compute_client.streams.streams import Streams
from hapi.data import TransformSpec
from hapi.model import Graph
from hapi.plan import Profile
from profiler.calibration import contenders, watched
from profiler.remote import ServerClient
from profiler.tiers import Job, Listing


def contending(
    profile: Profile,
    server: ServerClient,
    data: str,
    graph: Graph,
    transform: TransformSpec,
    dataset: Listing,
    job: Job,
    cuts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Seconds per sample of a stream over each of these cuts (None: those that could be the best), by its name.

    The server holds the model, has listed `data`, has nothing else to do and keeps no features (InputError).
    """
    from profiler.planner import plan  # scipy is slow to import

    steady = replace(profile, samples=dataset.samples, epochs=1, kept_share=0.0)
    with Streams(
        server, data, graph, transform, dataset, device=job.device, engine=job.engine, precision=job.precision
    ) as streams:
        return watched(cuts or contenders(profile), lambda name: streams.pace(plan(steady, name)))
