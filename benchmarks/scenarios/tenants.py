"""`hapi bench tenants`: many tenants on one storage server, beside the server alone and beside other batch policies."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.bench import options
from benchmarks.bench.run import Bench, Plot
from benchmarks.bench.table import SAMPLES, SECONDS, SYSTEM, Column, number, times
from benchmarks.tenants.promises import judged
from hapi.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from benchmarks.bench.rows import Row
    from benchmarks.tenants.jobs import Network
    from benchmarks.tenants.parts import Alone

COUNTS, QUICK_COUNTS = (1, 2, 4, 8, 12, 20, 40), (6,)
VANISHING, QUICK_VANISHING = 20, 6
SAME, QUICK_SAME = (4, 20), (20,)
SAME_SAMPLES, QUICK_SAME_SAMPLES = 384, 192
SAME_WARM_SAMPLES = 256
"""Before equal tenants are timed: as many as batch sizes are looked for with, or the first job would pay for that."""
POLICIES = ("whole", "paper-lp")
PARTS = ("mixed", "same", "beside", "vanish")
PHOTOGRAPHS, QUICK_PHOTOGRAPHS = 256, 128
LARGE_JOB, QUICK_LARGE_JOB = 10_000, 1_000
COLUMNS = (
    Column("part", "part", is_text=True),
    Column("tenants", "tenants"),
    SYSTEM,
    SAMPLES,
    SECONDS,
    Column("alone_seconds", "alone", format_seconds),
    Column("makespan_to_alone", "of alone", times),
    Column("cpu_to_alone", "of its CPU", times),
    Column("mean_slowdown", "mean slowdown", number),
    Column("worst_to_mean", "worst of mean", times),
    Column("computed_per_sample", "computed per sample", number),
    Column("kept_images_per_s", "kept, images/s", number),
    Column("batches_waited", "batches waited", number),
    Column("worst_batches_waited", "worst", number),
    Column("worst_batches_after", "batches after leaving", number),
    Column("idle_rss_before_bytes", "idle before", format_bytes),
    Column("idle_rss_after_bytes", "idle after", format_bytes),
    Column("peak_bytes", "peak", format_bytes),
    Column("retries", "retries"),
    Column("failures", "failures"),
    Column("holds", "holds", is_text=True),
)
Parts = Annotated[list[str] | None, typer.Option("--part", help=f"Only this of {', '.join(PARTS)}; may be repeated.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("tenants")(tenants)


def tenants(
    count: Annotated[list[int] | None, typer.Option(min=1, max=40, help="Tenants at once; may be repeated.")] = None,
    model: options.Models = None,
    part: Parts = None,
    system: options.Systems = None,
    data: options.DataOption = None,
    job_seconds: Annotated[
        float, typer.Option(min=0.1, help="Of a tenant's job alone; every second takes twice.")
    ] = 1.5,
    budget: Annotated[str, typer.Option(help="Memory budget of the server: weights, batches, queues.")] = "1500MB",
    room: Annotated[str, typer.Option(help="Of the control group above budget and idle server.")] = "300MB",
    seed: options.Seed = 0,
    quick: options.Quick = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Tenants with tokens of their own ask one server for features, all at once.

    `mixed`: different networks and cuts inside one memory budget; `seconds` is the makespan, `alone` the sum of the
    times of the same jobs one after the other, by ours for every system; a tenant's slowdown is its time over that
    alone. `same`: 4 and 20 want
    the same. `beside`: one image while a large job runs, in times of its batch. `vanish`: every second one is killed.
    Systems: `ours`; `whole`, every request is one batch; `paper-lp`, the published linear program; the latter two in
    `mixed` only, under the same kernel limit. `holds` says which promise is broken: no failures, makespan 1.15 of alone
    (`same`: 1.3 of one tenant, each sample computed once), the worst slowdown 1.5 of the mean, one image within two
    batch times, killed tenants cost two batches at most. A broken promise of ours makes the command fail; what becomes
    of the others is told.
    """
    options.check_known("--part", part, PARTS)
    options.check_known("system", system, ("ours", *POLICIES))
    chosen = set(part or PARTS)
    columns = [Plot("slowdown", "How tenants are slowed, and how evenly", _draw)]
    with Bench("tenants", as_json=as_json, report=report, columns=COLUMNS, plots=columns, finish=judged) as bench:
        from benchmarks.bench.photographs import photographs
        from benchmarks.tenants.jobs import MODELS, Network

        used = PHOTOGRAPHS if not quick else QUICK_PHOTOGRAPHS
        names = model or (MODELS[:3] if quick else MODELS)
        bench.remark("Clients only receive and check what arrives; server on one processor, all clients on the rest.")
        with photographs(data, used, seed=seed) as folder:
            bench.say(f"capturing {', '.join(names)}")
            networks = []
            for name in names:
                with bench.step(system="ours", model=name.removeprefix("torchvision:")):
                    networks.append(Network.load(name))
            if not networks:
                return
            settings = _Settings(folder, networks, parse_bytes(budget), parse_bytes(room), job_seconds, used, quick)
            if "mixed" in chosen or "vanish" in chosen:
                counts = sorted(set(count or (QUICK_COUNTS if quick else COUNTS)))
                with bench.step(system="ours", part="mixed"):
                    _mixed(bench, settings, counts, system or ["ours", *(() if quick else POLICIES)], chosen)
            if "same" in chosen:
                usual = QUICK_SAME if quick else SAME
                counts = [tenants for tenants in SAME if tenants in (count or usual)]
                if not counts:
                    bench.remark(f"`same` was left out: it is of {' or '.join(map(str, SAME))} tenants (--count).")
                _same(bench, settings, counts)
            if "beside" in chosen:
                _beside(bench, settings)


class _Settings:
    def __init__(
        self, folder: Path, networks: Sequence[Network], budget: int, room: int, seconds: float, used: int, quick: bool
    ) -> None:
        self.folder, self.networks, self.budget, self.room = folder, networks, budget, room
        self.job_seconds, self.photographs, self.quick = seconds / 2 if quick else seconds, used, quick
        self.vanishing = QUICK_VANISHING if quick else VANISHING
        self.names = [f"tenant-{number}" for number in range(1, 41)]


def _mixed(bench: Bench, settings: _Settings, counts: Sequence[int], systems: Sequence[str], chosen: set[str]) -> None:
    from benchmarks.scenarios.memory import idle_bytes
    from benchmarks.tenants.jobs import tasks
    from benchmarks.tenants.parts import measure_alone, mixed, vanish
    from benchmarks.tenants.servers import OURS, tenant_server

    counts = counts if "mixed" in chosen else ()
    limit = idle_bytes(settings.folder) + settings.budget + settings.room
    bench.say(f"the control group's limit is {format_bytes(limit)}")
    wanted = tasks(settings.networks, max([*counts, settings.vanishing if "vanish" in chosen else 0]))
    common: dict[str, Any] = {"budget_bytes": settings.budget, "limit_bytes": limit}
    with tenant_server(settings.folder, settings.networks, settings.names, **common) as server:
        bench.say(f"measuring {len(wanted)} jobs alone")
        alone = measure_alone(server, wanted, settings.names[: len(wanted)], settings.job_seconds, settings.photographs)
        if any(tenants > len(alone) for tenants in counts):
            bench.remark(f"These networks give {len(alone)} different jobs: no more tenants than that at once.")
        counts = [tenants for tenants in counts if tenants <= len(alone)]
        for tenants in counts if OURS in systems else ():
            with bench.trial(system=OURS, part="mixed", tenants=tenants, **common) as trial:
                trial.measured(**mixed(server, alone[:tenants]))
        if "vanish" in chosen:
            with bench.trial(system=OURS, part="vanish", **common) as trial:
                trial.measured(**vanish(server, alone[: settings.vanishing]))
    for system in systems:
        if system != OURS:
            _policy(bench, settings, system, [alone[:tenants] for tenants in counts], common)


def _policy(
    bench: Bench, settings: _Settings, system: str, jobs: Sequence[Sequence[Alone]], common: dict[str, Any]
) -> None:
    """A policy that is compared with: it has a new server after each that the kernel killed."""
    from benchmarks.tenants.parts import mixed
    from benchmarks.tenants.servers import TenantServer, tenant_server

    server: TenantServer | None = None
    with contextlib.ExitStack() as stack:
        for alone in jobs:
            with bench.trial(system=system, part="mixed", tenants=len(alone), **common) as trial:
                if server is None or not server.is_alive:
                    stack.close()
                    server = stack.enter_context(
                        tenant_server(settings.folder, settings.networks, settings.names, system=system, **common)
                    )
                trial.measured(**mixed(server, alone))


def _same(bench: Bench, settings: _Settings, counts: Sequence[int]) -> None:
    from benchmarks.bench.photographs import multiplied
    from benchmarks.tenants.jobs import Task
    from benchmarks.tenants.parts import same
    from benchmarks.tenants.servers import tenant_server

    network = settings.networks[0]
    samples = QUICK_SAME_SAMPLES if settings.quick else SAME_SAMPLES
    for tenants in counts:
        # a server of its own for each: a deeper cut would begin at the features kept for the first
        with (
            multiplied(settings.folder, 2 * samples + SAME_WARM_SAMPLES) as folder,
            bench.trial(system="ours", part="same", model=network.graph.name, budget_bytes=settings.budget) as trial,
            tenant_server(folder, [network], settings.names, budget_bytes=settings.budget, cached=True) as server,
        ):
            task = Task(network, "output" if tenants == 20 else network.cut_at(0.9).name)
            trial.measured(**same(server, task, settings.names[:tenants], samples, SAME_WARM_SAMPLES))


def _beside(bench: Bench, settings: _Settings) -> None:
    from benchmarks.bench.photographs import multiplied
    from benchmarks.tenants.jobs import Task
    from benchmarks.tenants.parts import beside
    from benchmarks.tenants.servers import tenant_server

    images = QUICK_LARGE_JOB if settings.quick else LARGE_JOB
    with multiplied(settings.folder, images) as folder:
        for network in settings.networks[: 1 if settings.quick else 3]:
            with (
                bench.trial(system="ours", part="beside", model=network.graph.name) as trial,
                tenant_server(folder, [network], settings.names, budget_bytes=settings.budget) as server,
            ):
                trial.measured(**beside(server, Task(network, "output"), settings.names, images, tries=9))


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    from benchmarks.bench.report import colour

    left, right = figure.subplots(1, 2)
    mine = [row for row in rows if row.get("part") == "mixed" and row.get("slowdowns")]
    for place, system in enumerate(dict.fromkeys(row.system for row in mine)):
        part = [row for row in mine if row.system == system]
        x = [row.get("tenants") for row in part]
        left.plot(x, [row.get("makespan_to_alone") for row in part], "o-", label=system, color=colour(system, place))
        right.plot(x, [row.get("worst_to_mean") for row in part], "o-", label=system, color=colour(system, place))
        left.plot(
            [row.get("tenants") for row in part if row.get("failures")],
            [row.get("makespan_to_alone") for row in part if row.get("failures")],
            "x", markersize=12, color=colour(system, place),
        )  # fmt: skip
    left.set_ylabel("makespan / sum of times alone (x: tenants failed)")
    right.set_ylabel("worst slowdown / mean slowdown")
    counts = sorted({row.get("tenants") for row in mine})
    for axes in (left, right):
        axes.set_xlabel("tenants at once")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.minorticks_off()
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if mine:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8)
