"""`hapi bench simulate`: from profiles that were measured to clusters that are not at hand."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.rows import CELL
from benchmarks.bench.run import Bench
from benchmarks.bench.table import BANDWIDTH, BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, share, times
from benchmarks.simulate.plots import CONDITIONS, SYSTEMS, check_plots, plots
from hapi.units import format_seconds, parse_bandwidth

if TYPE_CHECKING:
    from benchmarks.simulate.tenants import JobSpec
    from hapi.plan import Plan, Profile

CELLS = ((1, 1), (1, 4), (1, 20), (10, 20), (10, 200), (100, 200), (100, 2000), (1000, 2000), (1000, 10_000))
QUICK_CELLS = ((1, 1), (1, 20), (10, 20), (10, 200), (100, 1000))
MIXED = ("100mbit", "1gbit", "10gbit")
LATENCY_SECONDS = 0.001
SPAN, SAMPLES_USED = 64, 1280
COLUMNS = (
    MODEL,
    Column("nodes", "nodes"),
    Column("tenants", "tenants"),
    Column("condition", "condition", is_text=True),
    SYSTEM,
    SAMPLES,
    SECONDS,
    Column("ratio_to_none", "vs none", times),
    Column("mean_slowdown", "mean slowdown", number),
    Column("worst_slowdown", "worst", number),
    Column("busy", "nodes busy", share),
    Column("queue_seconds", "queued", format_seconds),
    Column("node_hours", "node-hours", number),
    Column("most_nodes", "most nodes"),
    Column("retries", "retries"),
    BYTES,
)
CHECK_MODEL = "torchvision:resnet18"
CHECK_BANDWIDTHS = ("50mbit", "1gbit")
CHECK_COLUMNS = (
    MODEL,
    BANDWIDTH,
    Column("cut", "cut", is_text=True),
    Column("tenants", "tenants"),
    SAMPLES,
    Column("seconds", "measured", format_seconds),
    Column("simulated_seconds", "simulated", format_seconds),
    Column("simulated_over_measured", "ratio", times),
    BYTES,
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("simulate")(simulate)


def simulate(
    model: options.Models = None,
    profile: list[Path] = typer.Option([], help="A profile (hapi profile --json) instead of measuring; repeatable."),
    data: options.DataOption = None,
    cell: list[str] = typer.Option([], help="NODES:TENANTS; may be repeated. (default: 1:1 to 1000:10000)"),
    bandwidth: options.Bandwidths = None,
    node_bandwidth: str = typer.Option("10gbit", help="Of each storage node's network interface."),
    samples: options.Samples = None,
    epochs: options.Epochs = 1,
    failures: str = typer.Option("300:30", help="Mean seconds between failures of a node, and to repair it."),
    seed: options.Seed = 0,
    check: bool = typer.Option(False, "--check", help="Hold the simulation against the testbed instead."),
    testbed: options.TestbedKind = "auto",
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Simulates storage nodes and tenants (SimPy), by costs that were measured.

    Every tenant trains the same network over a link of its own, one of the bandwidths in turn; its plan is made for
    that link and for its part of the nodes. `seconds` is the makespan. A tenant's slowdown is its time over what it
    takes with node and link to itself. `failures` lets nodes fail and come back, `autoscaling` starts with a tenth of
    the nodes and looks every half minute whether they are busy (short jobs see nothing of it). Later epochs train on
    features that the client has cached.

    A plan is made for the nodes that are up and the tenants that ask them when a job begins, and anew when a tenant's
    part of them has changed by a quarter.

    With --check a few small cases run on the testbed (one server; 1, 2 and 4 tenants; two cuts; two bandwidths), and
    the same are simulated from the link, the costs and the mean batch of each case that were measured there; `ratio` is
    simulated over measured, and a row fails that is not within 10 %.
    """
    if check:
        _check(model, data, bandwidth, testbed, samples, seed, quick, report, as_json)
        return
    from benchmarks.simulate.cluster import Autoscaling, ClusterSpec, Failures
    from benchmarks.simulate.cluster import simulate as run

    samples = samples or SAMPLES_USED
    cells = [_pair(text, "--cell") for text in cell] or list(QUICK_CELLS if quick else CELLS)
    between, repair = _pair(failures, "--failures")
    rates = [parse_bandwidth(text) for text in bandwidth or MIXED]
    interface = parse_bandwidth(node_bandwidth)
    same = (*CELL, "nodes", "tenants", "condition")
    with Bench(
        "simulate",
        as_json=as_json,
        report=report,
        columns=COLUMNS,
        compare_with=["none"],
        same=same,
        title="Storage nodes and tenants, simulated",
        plots=plots(),
    ) as bench:
        bench.remark("Simulated, not measured, from profiles whose machine is named with the rows.")
        for found in _profiles(model, profile, data, bench):
            for nodes, tenants in cells:
                clusters = {
                    "steady": ClusterSpec(nodes, interface, seed=seed),
                    "failures": ClusterSpec(nodes, interface, Failures(between, repair), seed=seed),
                    "autoscaling": ClusterSpec(
                        max(1, nodes // 10), interface, autoscaling=Autoscaling(nodes), seed=seed
                    ),
                }
                for condition, system in _combinations(nodes, tenants):
                    with bench.trial(
                        system=system, model=found.model, nodes=nodes, tenants=tenants, condition=condition
                    ) as trial:
                        begun = time.perf_counter()
                        jobs = _jobs(found, system, rates, tenants, samples, epochs)
                        outcome = run(clusters[condition], jobs)
                        trial.measured(
                            samples=samples,
                            epochs=epochs,
                            seconds=outcome.makespan_seconds,
                            bytes=int(outcome.bytes),
                            mean_slowdown=sum(outcome.slowdowns) / tenants,
                            worst_slowdown=max(outcome.slowdowns),
                            busy=outcome.busy,
                            queue_seconds=outcome.queue_seconds,
                            node_hours=outcome.node_hours,
                            most_nodes=outcome.most_nodes,
                            retries=outcome.retries,
                            cuts=_first_cuts(jobs[: len(rates)], clusters[condition].nodes / tenants),
                            simulated_in_seconds=time.perf_counter() - begun,
                        )


def _check(
    models: list[str] | None,
    data: str | None,
    bandwidths: list[str] | None,
    testbed: str,
    samples: int | None,
    seed: int,
    quick: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    from benchmarks.simulate.check import QUICK_SAMPLES, SAMPLES, run_check

    with Bench(
        "simulate",
        as_json=as_json,
        report=report,
        columns=CHECK_COLUMNS,
        title="The simulator beside the testbed",
        plots=check_plots(),
    ) as bench:
        bench.remark(
            "Simulated from the link and the profile that the testbed gave before and after the cases, and from the "
            "mean batch that the server took in each."
        )
        rates = [parse_bandwidth(text) for text in bandwidths or CHECK_BANDWIDTHS]
        used = samples or (QUICK_SAMPLES if quick else SAMPLES)
        for name in models or [CHECK_MODEL]:
            run_check(bench, name, rates, data=data, testbed=testbed, samples=used, seed=seed, quick=quick)


def _combinations(nodes: int, tenants: int) -> list[tuple[str, str]]:
    """(condition, system): all systems when nothing changes, ours in every condition; scaling needs nodes to add."""
    rough = [condition for condition in CONDITIONS[1:] if condition == "failures" or nodes > 1]
    return [("steady", system) for system in SYSTEMS] + [(condition, "mix") for condition in rough if tenants > 1]


def _jobs(
    profile: Profile,
    system: str,
    rates: Sequence[float],
    tenants: int,
    samples: int,
    epochs: int,
) -> list[JobSpec]:
    """One job per tenant; those with equal links share a plan."""
    from benchmarks.simulate.tenants import JobSpec

    head = min(cut.client_seconds for cut in profile.cuts)
    made = []
    for rate in rates:
        planned = _planner(profile, system, rate, samples)
        made.append(
            JobSpec(
                profile,
                planned(1.0),
                rate,
                LATENCY_SECONDS,
                samples,
                epochs,
                SPAN,
                head_seconds=head,
                replan=planned if system == "mix" else None,
            )
        )
    return [made[number % len(made)] for number in range(tenants)]


def _first_cuts(jobs: Sequence[JobSpec], share: float) -> list[dict[str, Any]]:
    """What each link's jobs begin with, when every tenant has this part of a node."""
    plans = [(job, job.plan if job.replan is None else job.replan(min(1.0, share))) for job in jobs]
    return [{"bandwidth_bits_per_s": job.bandwidth_bits_per_s, "cuts": plan.to_json()["cuts"]} for job, plan in plans]


def _planner(profile: Profile, system: str, rate: float, samples: int) -> Callable[[float], Plan]:
    """Plans for a part of a node's time, remembered; parts are rounded by a tenth, as plans hardly differ by less."""
    from profiler.planner import plan

    @functools.cache
    def at(step: int) -> Plan:
        return plan(
            profile,
            system,
            bandwidth=rate,
            latency=LATENCY_SECONDS,
            samples=samples,
            epochs=1,
            server_share=1.1**step,
        )

    return lambda share: at(round(math.log(share, 1.1)))


def _profiles(models: list[str] | None, files: Sequence[Path], data: str | None, bench: Bench) -> list[Profile]:
    """Those in files, and those of the models, measured here: this machine plays both tiers."""
    from hapi.errors import InputError
    from hapi.plan import Profile

    found = []
    for file in files:
        try:
            found.append(Profile.loads(file.read_bytes()))
        except OSError as error:
            raise InputError(f"--profile {file}: {error.strerror}.") from error
    wanted = models or ([] if found else ["torchvision:mobilenet_v2"])
    if wanted:
        from benchmarks.bench.photographs import photographs
        from profiler.front import profile as measured

        with photographs(data, 48) as folder:
            for spec in wanted:
                bench.say(f"profiling {spec} on this machine")
                with bench.step(system="mix", model=spec.removeprefix("torchvision:")):
                    found.append(measured(spec, folder, weights="none", bandwidth=1e9))
    return found


def _pair(text: str, option: str) -> tuple[int, int]:
    from hapi.errors import InputError

    left, _, right = text.partition(":")
    if not (left.isdigit() and right.isdigit() and int(left) and int(right)):
        raise InputError(f"{option} {text!r}: give two whole numbers with a colon, as in 10:200.")
    return int(left), int(right)
