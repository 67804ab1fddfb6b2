"""From a profile to a plan: apply a policy, predict, and say why in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hapi.errors import InputError
from hapi.plan import INPUT, OUTPUT, CutCost, Link, Plan, Profile, Share
from hapi.units import format_bandwidth, format_bytes, format_seconds
from profiler.pipeline import RESOURCES, Pipeline
from profiler.policies import POLICIES, Choice, choose_single, limit_shares


def plan(
    profile: Profile,
    policy: str = "mix",
    *,
    bandwidth: float | None = None,
    latency: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    samples: int | None = None,
    server_share: float = 1.0,
) -> Plan:
    """Decides where the samples of a job are cut.

    Args:
        profile: what every cut costs.
        policy: `mix` (least predicted time), `single` (best one cut), `none`, `all`, `paper`, `paper-v1` (the published
            rules), or the name of a cut.
        bandwidth, latency: of the link, bits per second and seconds; they replace the profile's.
        batch_size, epochs, samples: of the job; they replace the profile's.
        server_share: the part of the storage server's time that this job gets, above 0 and at most 1.

    Raises:
        InputError: the policy is neither known nor a cut, or no cut fits in memory.
        ProfileError: neither the profile nor the arguments say what the link gives.
    """
    job = _adapted(profile, bandwidth, latency, batch_size, epochs, samples)
    pipeline = Pipeline.of(job, server_share=server_share)
    choice = _choose(pipeline, policy)
    limit = limit_shares(pipeline)
    bounds = [pipeline.busy_seconds(shares) for shares in (limit, choice.shares)]
    return Plan(
        policy=policy,
        cuts=tuple(
            _share(pipeline, cut, float(share))
            for cut, share in zip(pipeline.columns, choice.shares, strict=True)
            if share
        ),
        predicted_seconds=pipeline.seconds(choice.shares),
        limit_seconds=min(pipeline.over_epochs(float(pipeline.samples * busy.max()), busy) for busy in bounds),
        reasons=tuple(_reasons(pipeline, policy, choice)),
    )


def _share(pipeline: Pipeline, column: CutCost, share: float) -> Share:
    """Says how features travel if that is not the first of the cut's ways, the job's default."""
    default = pipeline.profile.cut(column.name).wire[:1]
    if column.wire == default:
        return Share(column.name, share)
    (way,) = column.wire
    return Share(column.name, share, way.codec, way.compression)


def _adapted(
    profile: Profile,
    bandwidth: float | None,
    latency: float | None,
    batch_size: int | None,
    epochs: int | None,
    samples: int | None,
) -> Profile:
    link = profile.link
    if bandwidth is not None:
        link = Link(bandwidth, link.latency_seconds if link else 0.0)
    if link is not None and latency is not None:
        link = replace(link, latency_seconds=latency)
    job = replace(
        profile,
        link=link,
        batch_size=profile.batch_size if batch_size is None else batch_size,
        epochs=profile.epochs if epochs is None else epochs,
        samples=profile.samples if samples is None else samples,
    )
    if job.batch_size < 1 or job.epochs < 1 or job.samples < 0:
        raise InputError(
            f"a plan needs a batch size and epochs of at least 1, got {job.batch_size} and {job.epochs} epochs."
        )
    if link is not None and not (link.bandwidth_bits_per_s > 0 and link.latency_seconds >= 0):
        raise InputError(f"the link's bandwidth must be above 0 and its latency not negative, got {link}.")
    return job


def _choose(pipeline: Pipeline, policy: str) -> Choice:
    if policy in POLICIES:
        return POLICIES[policy](pipeline)
    if policy in pipeline.names:
        return Choice(pipeline.only(policy))
    raise InputError(
        f"unknown policy {policy!r}: neither one of {', '.join(POLICIES)} nor a cut of {pipeline.profile.model!r} "
        f"({', '.join(dict.fromkeys(pipeline.names))})."  # which has a cut once for each way to travel
    )


def _reasons(pipeline: Pipeline, policy: str, choice: Choice) -> list[str]:
    job, shares = pipeline.profile, choice.shares
    reasons = [*choice.notes]
    for index in np.flatnonzero(shares):
        reasons.append(_about_cut(pipeline, int(index), float(shares[index])))
    reasons.append(_about_pace(pipeline, shares))
    amount = f"{job.samples} samples" if job.samples else "each sample (the profile does not say how many)"
    if job.epochs > 1:
        amount += f" x {job.epochs} epochs"
        if job.kept_share:
            amount += f" ({job.kept_share:.0%} of the features are kept, and only trained on after the first)"
    times = {policy: pipeline.seconds(shares)}
    for name, cut in (("none", INPUT), ("all", OUTPUT)):
        times.setdefault(name, pipeline.seconds(pipeline.only(cut)))
    misfits = pipeline.misfits()
    if len(misfits) < len(job.cuts):
        best = choose_single(pipeline)
        if policy != "single" and np.count_nonzero(shares) > 1:
            name = pipeline.names[int(best.shares.argmax())]
            times[f"only {name}"] = pipeline.seconds(best.shares)
    listed = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in times.items())
    reasons.append(f"predicted for {amount}: {listed}")
    reasons.extend(_about_memory(pipeline, shares, misfits))
    return reasons


def _about_cut(pipeline: Pipeline, index: int, share: float) -> str:
    cut, job = pipeline.columns[index], pipeline.profile
    who = "every sample" if share > 0.9995 else f"{share:.1%} of the samples"
    if cut.name == INPUT:
        return f"{who}: shipped as stored ({format_bytes(cut.out_bytes)}), all computed by the client"
    ratio = job.input_bytes / cut.out_bytes if cut.out_bytes else float("inf")
    compared = (
        (
            f"{ratio:.3g} times less than the {format_bytes(job.input_bytes)} stored"
            if ratio >= 1
            else f"{1 / ratio:.3g} times the {format_bytes(job.input_bytes)} stored"
        )
        if job.input_bytes
        else "stored size unknown"
    )
    return (
        f"{who}: cut at {cut.name}, {format_bytes(cut.out_bytes)}{_about_way(cut)} on the link ({compared}), "
        f"{format_seconds(cut.server_seconds)} on the server, {format_seconds(cut.client_seconds)} on the client"
    )


def _about_way(cut: CutCost) -> str:
    """` as int8 (zstd)`; nothing where there was nothing to choose."""
    if not cut.wire:
        return ""
    way = cut.wire[0]
    return f" as {way.codec}" + ("" if way.compression == "none" else f" ({way.compression})")


def _about_pace(pipeline: Pipeline, shares: np.ndarray) -> str:
    busy = pipeline.busy_seconds(shares)
    pace = busy.max()
    if pace == 0:
        return "nothing costs any time in this profile"
    link = pipeline.profile.link
    assert link is not None
    bound = [name for name, seconds in zip(RESOURCES, busy, strict=True) if seconds > 0.98 * pace]
    rest = [
        f"{name} is busy {seconds / pace:.0%} of the time"
        for name, seconds in zip(RESOURCES, busy, strict=True)
        if seconds <= 0.98 * pace
    ]
    rate = f"{1 / pace:.4g} samples/s over {format_bandwidth(link.bandwidth_bits_per_s)}"
    if not rest:
        return f"the storage server, the link and the client are all busy, at {rate}"
    return f"{' and '.join(bound)} set{'s' if len(bound) == 1 else ''} the pace at {rate}; {', '.join(rest)}"


def _about_memory(pipeline: Pipeline, shares: np.ndarray, misfits: Mapping[str, str]) -> list[str]:
    if not misfits:
        return []
    used = {pipeline.names[index] for index in np.flatnonzero(shares)}  # in whichever of its ways a cut is taken
    chosen = [name for name in misfits if name in used]
    if chosen:
        return [f"warning: {chosen[0]} does not fit: {misfits[chosen[0]]}"]
    first = next(iter(misfits))
    others = f" and {len(misfits) - 1} more cuts" if len(misfits) > 1 else ""
    return [f"left out for memory: {first}{others} ({misfits[first]})"]
