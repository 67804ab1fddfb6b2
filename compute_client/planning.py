"""Which cuts a loader uses: a fixed choice, or a plan from measurements of both tiers and the link."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compute_client.backbone import Backbone
from compute_client.dataset import Dataset
from compute_client.remote import RemoteJob
from compute_client.transport import ServerClient
from hapi.backoff import again
from hapi.data import TransformSpec
from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, Link, Plan, Share

AUTO = "auto"
POLICIES = ("mix", "single", "paper", "paper-v1")
PROFILE_SAMPLES = 32
"""Samples that either tier decodes and computes to measure itself."""
PROFILE_REPEATS, PROFILE_SECONDS = 3, 5.0
"""Timed runs here, and after how long no further one is begun: a plan should not cost more than it saves."""


@dataclass(frozen=True)
class Workload:
    """What the plan is for."""

    samples: int
    batch_size: int
    epochs: int


def fixed_cut(pushdown: str | Plan, has_server: bool) -> str | None:
    """The one cut that `pushdown` names without any measurement; None for a plan of several, or one yet to be made."""
    if isinstance(pushdown, Plan):
        names = [share.name for share in pushdown.cuts]
        if names != [INPUT] and not has_server:
            raise InputError(
                f"pushdown: the plan cuts at {', '.join(names)}, which needs a storage server. Give server=URL."
            )
        return names[0] if len(names) == 1 else None
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
    """Measures the server, this machine and the link (unless it is given), and decides by policy.

    The server must hold the model already.
    """
    # scipy is slow to import, and a fixed choice does not need it
    from profiler.front import HEAD_CLASSES, head_seconds
    from profiler.link import probe_link
    from profiler.loading import measure_decoding
    from profiler.measuring import measure
    from profiler.planner import plan
    from profiler.tier import combine

    assert job.model is not None
    samples = max(2, min(PROFILE_SAMPLES, dataset.samples))
    graph = backbone.graph(transform)
    device = str(backbone.device)
    with client.tier() as tier:
        server = again(lambda: tier.measure(str(job.model), job.dataset, transform, samples), client.retry)
        budget_bytes = tier.status().budget_bytes
        link = link or probe_link(tier.fetch)
        spread = sorted({position * dataset.samples // samples for position in range(samples)})
        objects = again(lambda: tier.objects(job.dataset, spread), client.retry)
    decode_seconds = measure_decoding(objects, transform, workers=threads)
    near = measure(
        graph,
        device=device,
        repeats=PROFILE_REPEATS,
        limit_seconds=PROFILE_SECONDS,
        codec=job.codec,
        load_seconds=decode_seconds,
        input_bytes=dataset.input_bytes,
    )
    if [row.name for row in server.rows] == [row.name for row in near.rows]:
        # the server counted exact features; here the job's codec is known
        rows = zip(server.rows, near.rows, strict=True)
        server = replace(server, rows=tuple(replace(far, out_bytes=own.out_bytes) for far, own in rows))
    features = graph.output.shape[-1] if graph.output.shape else 1
    profile = combine(
        server,
        near,
        link=link,
        samples=workload.samples,
        batch_size=workload.batch_size,
        epochs=workload.epochs,
        model=backbone.name,
        head_seconds=head_seconds(features, len(dataset.classes) or HEAD_CLASSES, workload.batch_size, device),
        server_memory_bytes=budget_bytes,
    )
    return plan(profile, "mix" if pushdown == AUTO else pushdown)
