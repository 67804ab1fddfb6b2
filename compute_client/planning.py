"""Which cuts a loader uses: a fixed choice, or a plan from measurements of both tiers and the link."""

from __future__ import annotations

from dataclasses import dataclass

from compute_client.backbone import Backbone
from compute_client.dataset import Dataset
from hapi.data import TransformSpec
from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, Link, Plan, Profile, Share
from hapi.wire import Allowed
from profiler.remote import ServerClient

AUTO = "auto"
FOLLOWING = ("mix", "single")
PROFILE_REPEATS, PROFILE_SECONDS = 3, 1.5
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
    return None if pushdown in policies() else pushdown


def fixed_plan(pushdown: str, cut: str, *, has_server: bool) -> Plan:
    """A plan that was not decided by measuring: it predicts nothing."""
    reason = f"pushdown={pushdown!r} was asked for; nothing was measured"
    if not has_server:
        reason = "no server was given: everything runs in this process"
    return Plan(pushdown if has_server else "none", (Share(cut, 1.0),), None, None, (reason,))


def unmeasured_plan(reason: str) -> Plan:
    """No pushdown, where `auto` could not measure."""
    return Plan("none", (Share(INPUT, 1.0),), None, None, (reason,))


def policies() -> tuple[str, ...]:
    """What `pushdown` can be besides the name of a cut."""
    from profiler.policies import POLICIES  # scipy is slow to import

    return (AUTO, *POLICIES)


def follows(pushdown: str | Plan) -> bool:
    """Whether a plan of this kind may change while its job runs: one that is ours to make."""
    return pushdown in (AUTO, *FOLLOWING)


def measured_plan(
    pushdown: str,
    client: ServerClient,
    backbone: Backbone,
    transform: TransformSpec,
    dataset: Dataset,
    workload: Workload,
    *,
    allowed: Allowed,
    link: Link | None,
    threads: int,
    kept_share: float = 0.0,
) -> tuple[Plan, Profile]:
    """Measures the server, this machine and the link (unless it is given), and decides by policy.

    The server must hold the model already. `kept_share`: part of the samples that later epochs find in the cache.
    """
    from profiler.measurements import Measurements, default_folder
    from profiler.planner import plan
    from profiler.tiers import Job, profile_with_server

    job = Job(
        workload.samples,
        workload.batch_size,
        workload.epochs,
        len(dataset.classes),
        backbone.device,
        allowed,
        PROFILE_REPEATS,
        PROFILE_SECONDS,
        kept_share,
        backbone.engine,
        backbone.precision,
    )
    graph = backbone.graph(transform)
    kept = Measurements(default_folder())
    profile = profile_with_server(client, graph, dataset, transform, job, link=link, workers=threads, remembered=kept)
    return plan(profile, policy_of(pushdown)), profile


def computed_seconds(plan: Plan, workload: Workload, kept_share: float) -> float | None:
    """What a plan that was made for this work predicts for each sample that is computed; None if it does not.

    `kept_share` as above: what is kept takes nearly no time. A plan that has changed since predicts as if nothing was.
    """
    later = workload.epochs - 1
    epochs = 1 + later * (1.0 if plan.history else 1 - kept_share)
    return plan.predicted_seconds / (workload.samples * epochs) if plan.predicted_seconds and workload.samples else None


def policy_of(pushdown: str) -> str:
    """The planner's policy: `auto` is `mix`."""
    return "mix" if pushdown == AUTO else pushdown
