"""The situations that are measured, each a row or several: mixed tenants, equal tenants, one image, tenants that go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tenants.clients import JobOutcome, JobRun, differs, run_together
from benchmarks.tenants.jobs import Task, TenantJob
from benchmarks.tenants.leaving import leaving
from benchmarks.tenants.servers import TenantServer
from hapi.wire.protocol import TenantStatus

WARM_SAMPLES = 32
SMALLEST_JOB = 16
MOST_TIMES_ALONE, GRACE_SECONDS = 4.0, 60.0
"""Jobs together that take longer than this times the sum of their times alone, and the grace, have failed."""
SERVED_SECONDS = 120.0
"""Within which half of the tenants that are to be killed must be served."""
IDLE_SECONDS = 12.0
"""After so long without work a server has given back the memory that it kept for the next tensors."""


@dataclass(frozen=True)
class Alone:
    """A job that had the server to itself, and what it took of the server's processor."""

    job: TenantJob
    outcome: JobOutcome
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        assert self.outcome.seconds is not None
        return self.outcome.seconds


def measure_alone(
    server: TenantServer, tasks: Sequence[Task], tenants: Sequence[str], job_seconds: float, photographs: int
) -> list[Alone]:
    """A job for each task, sized to about `job_seconds` (every second one to twice that), and its time alone.

    Two runs of each, which do not count, find its batch size and tell how large the job must be. Then all jobs are run
    one after the other: a network whose weights had to go for others' is loaded again, here as when they run together.
    """
    jobs = []
    for number, (task, tenant) in enumerate(zip(tasks, tenants, strict=True)):
        warm = TenantJob(tenant, task, tuple(range(min(WARM_SAMPLES, photographs))))
        checked(run_together(server.address, [warm]))
        begun = time.monotonic()
        checked(run_together(server.address, [warm]))
        rate = warm.samples / (time.monotonic() - begun)
        wanted = int(rate * job_seconds * (1 + number % 2))
        jobs.append(TenantJob(tenant, task, tuple(range(max(SMALLEST_JOB, min(wanted, photographs))))))
    found = []
    for job in jobs:
        before = server.counters()["cpu_seconds"]
        outcome = checked(run_together(server.address, [job]))[0]
        found.append(Alone(job, outcome, server.counters()["cpu_seconds"] - before))
    return found


def checked(outcomes: Iterable[JobOutcome]) -> list[JobOutcome]:
    """Those of a single tenant must succeed, else there is nothing to compare with; RuntimeError."""
    outcomes = list(outcomes)
    for outcome in outcomes:
        if outcome.seconds is None:
            raise RuntimeError(f"{outcome.job.task.name} failed alone: {outcome.error}")
    return outcomes


def mixed(server: TenantServer, alone: Sequence[Alone]) -> dict[str, Any]:
    """All these jobs at once: makespan against the sum of their times alone, and how evenly they were slowed.

    All of that of the jobs that were done; `failures` counts the others.
    """
    until = time.monotonic() + MOST_TIMES_ALONE * sum(one.seconds for one in alone) + GRACE_SECONDS

    def trouble() -> str | None:
        if not server.is_alive:
            return "the server died (killed by the kernel)" if server.kills else "the server died"
        return "not done in time" if time.monotonic() > until else None

    before = server.counters()
    outcomes = run_together(server.address, [one.job for one in alone], trouble=trouble)
    told = _explained(server, before) if server.is_alive else {}
    if told:
        told["cpu_to_alone"] = told["cpu_seconds"] / sum(one.cpu_seconds for one in alone)
    done = [(one, outcome) for one, outcome in zip(alone, outcomes, strict=True) if outcome.seconds is not None]
    wrong = [said for one, outcome in done if (said := differs(outcome, one.outcome.prints))]
    failures = [f"{outcome.job.tenant}: {outcome.error}" for outcome in outcomes if outcome.seconds is None]
    slowdowns = [(outcome.seconds or 0.0) / one.seconds for one, outcome in done]
    makespan = max((outcome.seconds or 0.0 for _, outcome in done), default=None)
    total = sum(one.seconds for one, _ in done)  # those that failed took nothing: they must not make the others fast
    return {
        "tenants": len(alone),
        "samples": sum(one.job.samples for one, _ in done),
        "seconds": makespan,
        "alone_seconds": total,
        "makespan_to_alone": None if makespan is None else makespan / total,
        "mean_slowdown": statistics.mean(slowdowns) if slowdowns else None,
        "worst_slowdown": max(slowdowns, default=None),
        "worst_to_mean": max(slowdowns) / statistics.mean(slowdowns) if slowdowns else None,
        "slowdowns": slowdowns,
        "jobs": [_told(one, outcome) for one, outcome in done],
        "failures": len(failures) + len(wrong),
        "retries": sum(outcome.stats.retries for outcome in outcomes),
        "bytes": sum(outcome.stats.bytes_received for outcome in outcomes),
        "peak_bytes": server.peak_bytes,
        **told,
        "note": "; ".join([*failures[:2], *wrong[:2]]),
    }


def _told(one: Alone, outcome: JobOutcome) -> dict[str, Any]:
    """One tenant of many: what tells why it was slowed more than others."""
    return {
        "task": one.job.task.name,
        "samples": one.job.samples,
        "alone_seconds": one.seconds,
        "seconds": outcome.seconds,
        "first_seconds": outcome.first_seconds,
        "alone_first_seconds": one.outcome.first_seconds,
    }


def same(server: TenantServer, task: Task, tenants: Sequence[str], samples: int, warm_samples: int) -> dict[str, Any]:
    """All tenants want the same features of the same photographs, in the same order: against one of them, alone.

    The one tenant comes second, on photographs of its own, as many: nothing is kept for it. At last all ask again for
    what is kept by then. Batch sizes are found before, with `warm_samples` others.
    """
    warm = TenantJob(tenants[0], task, tuple(range(2 * samples, 2 * samples + warm_samples)))
    checked(run_together(server.address, [warm]))
    jobs = [TenantJob(tenant, task, tuple(range(samples))) for tenant in tenants]
    before, used = _computed(server, task), [server.counters()["cpu_seconds"]]
    together = run_together(server.address, jobs)
    computed = _computed(server, task) - before
    used.append(server.counters()["cpu_seconds"])
    one = checked(run_together(server.address, [TenantJob(tenants[0], task, tuple(range(samples, 2 * samples)))]))[0]
    used.append(server.counters()["cpu_seconds"])
    again = run_together(server.address, jobs)
    failures = [f"{outcome.job.tenant}: {outcome.error}" for outcome in together + again if outcome.seconds is None]
    wrong = [said for outcome in together + again if (said := differs(outcome, together[0].prints))]
    makespan, last = (max(outcome.seconds or 0.0 for outcome in outcomes) for outcomes in (together, again))
    assert one.seconds is not None
    return {
        "tenants": len(tenants),
        "samples": samples,
        "seconds": makespan,
        "alone_seconds": one.seconds,
        "makespan_to_alone": makespan / one.seconds,
        "cpu_to_alone": (used[1] - used[0]) / (used[2] - used[1]),
        "kept_images_per_s": len(again) * samples / last if last else None,
        "computed_per_sample": computed / samples,
        "weight_bytes": server.status().used_bytes,
        "failures": len(failures) + len(wrong),
        "peak_bytes": server.peak_bytes,
        "note": "; ".join([*failures[:2], *wrong[:2]]),
    }


def beside(server: TenantServer, task: Task, tenants: Sequence[str], images: int, tries: int) -> dict[str, Any]:
    """One image at a time for other tenants, while a large job runs: its seconds in times of the large job's batch.

    A batch's seconds are what the large job's samples took of the device meanwhile, times those of a whole batch: of
    the size that the job mostly had before each try, and not of one that was only tried, which would flatter.
    """
    large = JobRun(server.address, TenantJob(tenants[0], task, tuple(range(images))), in_flight=4, span=64)
    large.start()
    try:
        _wait_for_batches(server, task)
        before = _tenant(server, tenants[0])
        waits, errors, sizes = [], [], []
        for number in range(tries):
            told = _prefix(server, task)
            if told.reason != "exploring":
                sizes.append(told.batch)
            small = TenantJob(tenants[1 + number % (len(tenants) - 1)], task, (images - 1 - number,))
            outcome = run_together(server.address, [small])[0]
            if outcome.seconds is None:
                errors.append(str(outcome.error))
            else:
                waits.append(outcome.seconds)
        after, batch = _tenant(server, tenants[0]), statistics.median_low(sizes or [_prefix(server, task).batch])
        if after.samples == before.samples:
            raise RuntimeError(f"{task.name}: the large job got nothing while others asked for one image each")
        sample_seconds = (after.device_seconds - before.device_seconds) / (after.samples - before.samples)
        batch_seconds = batch * sample_seconds
    finally:
        large.vanish()
        large.join()
    return {
        "tenants": 2,
        "samples": images,
        "seconds": statistics.median(waits) if waits else None,
        "worst_seconds": max(waits, default=None),
        "batch_seconds": batch_seconds,
        "batches_waited": statistics.median(waits) / batch_seconds if waits else None,
        "worst_batches_waited": max(waits) / batch_seconds if waits else None,
        "batch": batch,
        "failures": len(errors),
        "note": "; ".join(errors[:2]),
    }


def vanish(server: TenantServer, alone: Sequence[Alone]) -> dict[str, Any]:
    """Every second tenant is killed in the middle: what that still costs, and the others' results."""
    idle_before = server.status().rss_bytes
    gone = [one.job.tenant for one in alone[1::2]]
    begun, spent = _device_seconds(server), dict[str, float]()

    with leaving() as killed:

        def leave(runs: list[JobRun]) -> None:
            """As soon as at least half of them are being served: however slow the machine, and before they are done."""
            killed.start(server.address, [one.job for one in alone[1::2]])
            until = time.monotonic() + SERVED_SECONDS
            while time.monotonic() < until:
                spent.update(_device_seconds(server))  # before: a busy server answers late and hides what it counts
                if sum(spent.get(name, 0.0) > begun.get(name, 0.0) for name in gone) >= len(gone) / 2:
                    break
                time.sleep(0.05)
            killed.kill()

        outcomes = run_together(server.address, [one.job for one in alone[0::2]], leave)
    after = _device_seconds(server)
    served = [name for name in gone if spent.get(name, 0.0) > begun.get(name, 0.0)]
    if len(served) < len(gone) / 2:
        raise RuntimeError(f"only {len(served)} of {len(gone)} tenants were being served when they were killed")
    wasted = [after.get(name, 0.0) - spent.get(name, 0.0) for name in gone]
    stayed = list(zip(alone[0::2], outcomes, strict=True))
    failures = [f"{outcome.job.tenant}: {outcome.error}" for _, outcome in stayed if outcome.seconds is None]
    wrong = [said for one, outcome in stayed if (said := differs(outcome, one.outcome.prints))]
    batches = [_batch_seconds(server, one.job.task) for one in alone[1::2]]
    after_leaving = [seconds / batch for seconds, batch in zip(wasted, batches, strict=True) if batch]
    status = server.status()
    held = sum(tenant.held_bytes for tenant in status.tenants)
    time.sleep(IDLE_SECONDS)
    return {
        "tenants": len(alone),
        "samples": sum(one.job.samples for one, _ in stayed),
        "seconds": max((outcome.seconds or 0.0 for _, outcome in stayed), default=0.0),
        "killed": len(gone),
        "killed_while_served": len(served),
        "worst_batches_after": max(after_leaving, default=0.0),
        "held_bytes": held,
        "idle_rss_before_bytes": idle_before,
        "idle_rss_after_bytes": server.status().rss_bytes,
        "failures": len(failures) + len(wrong),
        "peak_bytes": server.peak_bytes,
        "note": "; ".join([*failures[:2], *wrong[:2]]),
    }


def _explained(server: TenantServer, before: dict[str, float]) -> dict[str, Any]:
    """What tells why it took so long: what was counted since, and the sizes of batches with their reasons."""
    counted = {name: value - before[name] for name, value in server.counters().items()}
    sizes = {f"{one.model_name} {one.cut}": f"{one.batch} {one.reason}" for one in server.status().prefixes}
    return {**counted, "batch_sizes": sizes}


def _prefix(server: TenantServer, task: Task) -> Any:
    digest = task.network.graph.digest
    return next(one for one in server.status().prefixes if (one.model, one.cut) == (digest, task.cut))


def _tenant(server: TenantServer, name: str) -> TenantStatus:
    return next(tenant for tenant in server.status().tenants if tenant.name == name)


def _computed(server: TenantServer, task: Task) -> int:
    return int(_prefix(server, task).samples)


def _batch_seconds(server: TenantServer, task: Task) -> float:
    prefix = _prefix(server, task)
    return float(prefix.batch / prefix.images_per_s) if prefix.images_per_s else 0.0


def _device_seconds(server: TenantServer) -> dict[str, float]:
    return {tenant.name: tenant.device_seconds for tenant in server.status().tenants}


def _wait_for_batches(server: TenantServer, task: Task, samples: int = 256, seconds: float = 120.0) -> None:
    """Until the large job has its batch size; RuntimeError if it has not computed so many samples in that time."""
    digest, until = task.network.graph.digest, time.monotonic() + seconds
    done = 0
    while time.monotonic() < until:
        found = [one for one in server.status().prefixes if (one.model, one.cut) == (digest, task.cut)]
        done = found[0].samples if found else 0
        if done >= samples and found[0].reason != "exploring":
            return
        time.sleep(0.1)
    if done < samples:
        raise RuntimeError(f"{task.name}: not {samples} samples in {seconds:g} s")
