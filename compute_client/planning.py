"""Which cuts a loader uses: a fixed choice, or a plan from measurements of both tiers and the link."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from compute_client.backbone import Backbone
from compute_client.cancel import Cancel
from compute_client.dataset import Dataset
from compute_client.decode import Decoder
from compute_client.remote import RemoteJob
from compute_client.spans import Span
from compute_client.stats import LoaderStats
from compute_client.transport import ServerClient
from hapi.data import TransformSpec
from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, Link, Plan, Share
from hapi.wire.protocol import ProfileRequest

AUTO = "auto"
POLICIES = ("mix", "single", "paper", "paper-v1")
PROFILE_SAMPLES = 32
"""Samples that either tier decodes and computes to measure itself."""


@dataclass(frozen=True)
class Workload:
    """What the plan is for."""

    samples: int
    batch_size: int
    epochs: int


def fixed_cut(pushdown: str, has_server: bool) -> str | None:
    """The cut that `pushdown` names without any measurement, or None for a policy that must measure."""
    if not isinstance(pushdown, str) or not pushdown:
        raise InputError(f"pushdown {pushdown!r}: say auto, none, all, a policy or the name of a cut.")
    if pushdown in ("none", INPUT) or (pushdown == AUTO and not has_server):
        return INPUT
    if not has_server:
        raise InputError(f"pushdown {pushdown!r} needs a storage server. Give server=URL, or leave pushdown out.")
    if pushdown in ("all", OUTPUT):
        return OUTPUT
    return None if pushdown == AUTO or pushdown in POLICIES else pushdown


def fixed_plan(pushdown: str, cut: str, *, has_server: bool) -> Plan:
    """A plan that was not decided by measuring: it predicts nothing."""
    reason = f"pushdown={pushdown!r} was asked for; nothing was measured"
    if not has_server:
        reason = "no server was given: everything runs in this process"
    return Plan(pushdown if has_server else "none", (Share(cut, 1.0),), None, None, (reason,))


def measured_plan(
    pushdown: str,
    client: ServerClient,
    backbone: Backbone,
    transform: TransformSpec,
    dataset: Dataset,
    job: RemoteJob,
    workload: Workload,
    *,
    link: Link | None,
    threads: int,
) -> Plan:
    """Measures the server, this machine and the link (unless it is given), and decides by policy."""
    import profiler  # brings scipy, which a fixed choice does not need

    assert job.model is not None
    samples = max(2, min(PROFILE_SAMPLES, dataset.samples))
    document = client.profile(
        ProfileRequest(model=job.model, dataset=job.dataset, transform=transform.to_json(), samples=samples)
    )
    server = profiler.TierProfile.from_json(document)
    load_seconds = _load_seconds(client, transform, job, samples, threads)
    near = profiler.measure(
        backbone.graph(transform),
        device=str(backbone.device),
        codec=job.codec,
        load_seconds=load_seconds,
        input_bytes=dataset.input_bytes,
    )
    if [row.name for row in server.rows] == [row.name for row in near.rows]:
        # the server counted exact features; here the job's codec is known
        rows = zip(server.rows, near.rows, strict=True)
        server = replace(server, rows=tuple(replace(far, out_bytes=own.out_bytes) for far, own in rows))
    profile = profiler.combine(
        server,
        near,
        link=link or profiler.probe_link(client.link),
        samples=workload.samples,
        batch_size=workload.batch_size,
        epochs=workload.epochs,
        model=backbone.name,
    )
    return profiler.plan(profile, "mix" if pushdown == AUTO else pushdown)


def _load_seconds(client: ServerClient, transform: TransformSpec, job: RemoteJob, samples: int, threads: int) -> float:
    """Seconds per sample to decode and transform here, on `threads` threads; the bytes are fetched beforehand."""
    span = Span(0, INPUT, 0, tuple(range(samples)))
    objects: dict[int, bytes] = {}
    for batch in client.extract(job.request(span, list(span.indices))):
        for position, index in enumerate(batch.indices.tolist()):
            if position not in batch.errors and batch.objects is not None:
                objects[index] = batch.objects[position]
    decoder = Decoder(transform, seed=job.seed, threads=threads, stats=LoaderStats())
    cancel = Cancel()
    try:
        started = time.perf_counter()
        futures = [decoder.submit(partial(bytes, data), index, 0, cancel) for index, data in objects.items()]
        decoded = sum(1 for future in futures if future.exception() is None)
        seconds = time.perf_counter() - started
    finally:
        decoder.close()
    return seconds / decoded if decoded else 0.0
