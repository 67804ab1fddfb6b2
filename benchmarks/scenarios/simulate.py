"""`hapi bench simulate`: from profiles that were measured to clusters that are not at hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.rows import CELL
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import BYTES, MODEL, SAMPLES, SECONDS, SYSTEM, Column, number, share, times
from hapi.units import format_seconds, parse_bandwidth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.bench.rows import Row
    from benchmarks.simulate.tenants import JobSpec
    from hapi.plan import Profile

CELLS = ((1, 1), (1, 4), (1, 20), (10, 20), (10, 200), (100, 200), (100, 2000), (1000, 2000), (1000, 10_000))
QUICK_CELLS = ((1, 1), (1, 20), (10, 20), (10, 200), (100, 1000))
MIXED = ("100mbit", "1gbit", "10gbit")
SYSTEMS = ("none", "all", "mix")
WEATHERS = ("calm", "failures", "autoscaling")
LATENCY_SECONDS = 0.001
SPAN = 64
COLUMNS = (
    MODEL,
    Column("nodes", "nodes"),
    Column("tenants", "tenants"),
    Column("weather", "weather", is_text=True),
    SYSTEM,
    SAMPLES,
    SECONDS,
    Column("ratio_to_none", "of none", times),
    Column("mean_slowdown", "mean slowdown", number),
    Column("worst_slowdown", "worst", number),
    Column("busy", "nodes busy", share),
    Column("queue_seconds", "queued", format_seconds),
    Column("node_hours", "node-hours", number),
    Column("most_nodes", "most nodes"),
    Column("retries", "retries"),
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
    samples: int = typer.Option(1280, min=1, help="Per tenant and epoch."),
    epochs: options.Epochs = 1,
    failures: str = typer.Option("300:30", help="Mean seconds between failures of a node, and to repair it."),
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Simulates storage nodes and tenants (SimPy), by costs that were measured.

    Every tenant trains the same network over a link of its own, one of the bandwidths in turn; its plan is made for
    that link and for its part of the nodes. `seconds` is the makespan. A tenant's slowdown is its time over what it
    takes with node and link to itself. `failures` lets nodes fail and come back, `autoscaling` starts with a tenth of
    the nodes and adds them as work piles up. Later epochs train on features that the client has cached.
    """
    from benchmarks.simulate.cluster import Autoscaling, ClusterSpec, Failures
    from benchmarks.simulate.cluster import simulate as run

    cells = [_pair(text, "--cell") for text in cell] or list(QUICK_CELLS if quick else CELLS)
    between, repair = _pair(failures, "--failures")
    rates = [parse_bandwidth(text) for text in bandwidth or MIXED]
    interface = parse_bandwidth(node_bandwidth)
    same = (*CELL, "nodes", "tenants", "weather")
    plots = [
        Plot("makespan", "Makespan against the single choices", _draw_makespan),
        Plot("slowdown", "Slowdown of the mean and of the worst tenant", _draw_slowdown),
    ]
    with Bench(
        "simulate", as_json=as_json, report=report, columns=COLUMNS, compare_with=["none"], same=same, plots=plots
    ) as bench:
        bench.remark("Simulated, not measured, from profiles whose machine is named with the rows.")
        for found in _profiles(model, profile, data, bench):
            for nodes, tenants in cells:
                clusters = {
                    "calm": ClusterSpec(nodes, interface, seed=seed),
                    "failures": ClusterSpec(nodes, interface, Failures(between, repair), seed=seed),
                    "autoscaling": ClusterSpec(
                        max(1, nodes // 10), interface, autoscaling=Autoscaling(nodes), seed=seed
                    ),
                }
                for weather, system in _combinations(nodes, tenants):
                    with bench.trial(
                        system=system, model=found.model, nodes=nodes, tenants=tenants, weather=weather
                    ) as trial:
                        begun = time.perf_counter()
                        jobs = _jobs(found, system, rates, tenants, nodes, samples, epochs)
                        outcome = run(clusters[weather], jobs)
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
                            cuts=[
                                {"bandwidth_bits_per_s": job.bandwidth_bits_per_s, "cuts": job.plan.to_json()["cuts"]}
                                for job in jobs[: len(rates)]
                            ],
                            simulated_in_seconds=time.perf_counter() - begun,
                        )


def _combinations(nodes: int, tenants: int) -> list[tuple[str, str]]:
    """(weather, system): all systems when it is calm, ours in every weather; scaling needs nodes to add."""
    rough = [weather for weather in WEATHERS[1:] if weather == "failures" or nodes > 1]
    return [("calm", system) for system in SYSTEMS] + [(weather, "mix") for weather in rough if tenants > 1]


def _jobs(
    profile: Profile,
    system: str,
    rates: Sequence[float],
    tenants: int,
    nodes: int,
    samples: int,
    epochs: int,
) -> list[JobSpec]:
    """One job per tenant; those with equal links share a plan."""
    from benchmarks.simulate.tenants import JobSpec
    from profiler.planner import plan

    part = min(1.0, nodes / tenants)
    head = min(cut.client_seconds for cut in profile.cuts)
    made = []
    for rate in rates:
        chosen = plan(
            profile, system, bandwidth=rate, latency=LATENCY_SECONDS, samples=samples, epochs=1, server_share=part
        )
        made.append(JobSpec(profile, chosen, rate, LATENCY_SECONDS, samples, epochs, SPAN, head_seconds=head))
    return [made[number % len(made)] for number in range(tenants)]


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
                found.append(measured(spec, folder, weights="none", bandwidth=1e9))
    return found


def _pair(text: str, option: str) -> tuple[int, int]:
    from hapi.errors import InputError

    left, _, right = text.partition(":")
    if not (left.isdigit() and right.isdigit() and int(left) and int(right)):
        raise InputError(f"{option} {text!r}: give two whole numbers with a colon, as in 10:200.")
    return int(left), int(right)


def _draw_makespan(figure: Figure, rows: Sequence[Row]) -> None:
    from benchmarks.bench.report import colour

    axes: Any = figure.subplots()
    calm = [row for row in rows if row.get("weather") == "calm" and not row.failed]
    places = list(dict.fromkeys((row.get("nodes"), row.get("tenants")) for row in calm))
    for position, system in enumerate(SYSTEMS):
        mine = [row for row in calm if row.system == system]
        axes.bar(
            [places.index((row.get("nodes"), row.get("tenants"))) + 0.27 * (position - 1) for row in mine],
            [row.seconds for row in mine],
            width=0.25,
            label=system,
            color=colour(system, position),
        )
    axes.set_yscale("log")
    axes.set_ylabel("makespan, seconds")
    axes.set_xticks(range(len(places)), [f"{nodes} : {tenants}" for nodes, tenants in places])
    axes.set_xlabel("storage nodes : tenants")
    axes.legend(ncols=3)


def _draw_slowdown(figure: Figure, rows: Sequence[Row]) -> None:
    from benchmarks.bench.report import colour

    axes: Any = figure.subplots()
    mine = [row for row in rows if row.system == "mix" and not row.failed]
    places = list(dict.fromkeys((row.get("nodes"), row.get("tenants")) for row in mine))
    for position, weather in enumerate(WEATHERS):
        part = [row for row in mine if row.get("weather") == weather]
        x = [places.index((row.get("nodes"), row.get("tenants"))) for row in part]
        axes.plot(x, [row.get("mean_slowdown") for row in part], "o-", label=weather, color=colour("", position))
        axes.plot(x, [row.get("worst_slowdown") for row in part], "_", markersize=14, color=colour("", position))
    axes.set_yscale("log")
    axes.set_ylabel("time over time alone (dash: the worst)")
    axes.set_xticks(range(len(places)), [f"{nodes} : {tenants}" for nodes, tenants in places])
    axes.set_xlabel("storage nodes : tenants")
    axes.legend(ncols=3)
