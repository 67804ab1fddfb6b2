"""Runs every system on every network and link, as processes of their own, and makes rows of them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines.peers import EXTRA
from benchmarks.baselines.systems import PEERS, PLAIN, Job, command_of, is_installed, needs_server, note_of
from benchmarks.baselines.systems import SYSTEMS as KNOWN
from benchmarks.bench.options import check_known
from benchmarks.bench.photographs import count, enough, photographs
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.e2e.companions import UNCOUNTED, Companions
from benchmarks.e2e.counts import (
    LEAST,
    LEAST_BATCHES,
    MOST_BATCH,
    TARGET_SECONDS,
    batch_size,
    measured_pace,
    parse_samples,
    sample_counts,
)
from benchmarks.e2e.judgement import COLUMNS, judged
from benchmarks.e2e.plots import plots
from benchmarks.testbed.links import RealLink
from benchmarks.testbed.processes import Outcome, ProgramFailedError
from benchmarks.testbed.services import (
    BUCKET,
    SentModel,
    Server,
    Store,
    put_photographs,
    send_model,
    start_server,
    start_store,
)
from benchmarks.testbed.testbed import Testbed, open_testbed
from hapi.errors import InputError
from hapi.units import format_bandwidth, format_bytes, parse_bandwidth

MODELS = tuple(f"torchvision:{name}" for name in ("mobilenet_v2", "resnet18", "resnet50", "alexnet", "vit_b_16"))
RHOS = (0.25, 1.0, 4.0, 16.0)
SYSTEMS = (PLAIN, *PEERS, "none", "all", "static", "paper", "single", "mix")
QUICK_MODELS, QUICK_BANDWIDTHS, QUICK_SYSTEMS, QUICK_SAMPLES = MODELS[:1], ("15mbit",), (PLAIN, "none", "mix"), 224
"""A bandwidth, as one that follows from rho scatters as much as the one compute time that it is taken from."""
CALIBRATION_EPOCHS = 2
"""Of plain without a limit, at least: the first has its workers started and their memory touched for the first time."""
START_SECONDS, PATIENCE = 300.0, 4.0
"""A run is given up after so many times what plain needs at that link, and the first seconds on top."""
CALIBRATION_SECONDS = 1800.0
SHORT_SECONDS = 3.0
"""A run whose epochs took less is repeated: a hiccup of a tenth of a second tells."""
STARTING = ("start_seconds", "wall_seconds", "link_bytes_to_compute", "link_bytes_to_storage", "storage_cpu_seconds",
            "client_cpu_seconds")  # fmt: skip
"""Values of a run that count its start-up: all of one run, or the picture of them would add up two."""


@dataclass(frozen=True)
class Settings:
    """What is compared, on what. Empty tuples and None are the defaults, smaller ones with `quick`.

    `samples` is as `--samples` takes it: a number, and MODEL=NUMBER for single networks. `repeats` says how often runs
    of less than `SHORT_SECONDS` are made.
    """

    models: tuple[str, ...] = ()
    rhos: tuple[float, ...] = ()
    bandwidths: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    epochs: int = 1
    samples: tuple[str, ...] = ()
    batch_size: int | None = None
    data: str | None = None
    weights: str = "none"
    seed: int = 0
    device: str = "cpu"
    testbed: str = "auto"
    storage_cpus: int = 1
    compute_cpus: int = 1
    server: str | None = None
    s3_endpoint: str | None = None
    train_options: tuple[str, ...] = ()
    serve_options: tuple[str, ...] = ()
    repeats: int = 3
    upload: bool = False
    compile: bool = False
    quick: bool = False

    def chosen_systems(self) -> tuple[str, ...]:
        """In the order in which they run; plain always, and first, as the others' losses are held against it.

        A peer that is not installed is among them only where it was asked for by name.
        """
        wanted = self.systems or tuple(name for name in self._usual() if name not in self.left_out())
        check_known("system", wanted, KNOWN)
        return (PLAIN, *(name for name in wanted if name != PLAIN))

    def left_out(self) -> tuple[str, ...]:
        """The peers that a run of the usual systems lacks, as they are not installed."""
        return () if self.systems else tuple(name for name in self._usual() if not is_installed(name))

    def _usual(self) -> tuple[str, ...]:
        return QUICK_SYSTEMS if self.quick else SYSTEMS

    def chosen_models(self) -> tuple[str, ...]:
        """As `hapi train --model` takes them."""
        wanted = self.models or (QUICK_MODELS if self.quick else MODELS)
        return tuple(name if ":" in name else f"torchvision:{name}" for name in wanted)

    def links(self) -> list[tuple[float | None, float | None]]:
        """(rho, bits per second), one of them None: what follows from the other."""
        rhos, bandwidths = self.rhos, self.bandwidths
        if not (rhos or bandwidths):
            rhos, bandwidths = ((), QUICK_BANDWIDTHS) if self.quick else (RHOS, ())
        return [*((rho, None) for rho in rhos), *((None, parse_bandwidth(text)) for text in bandwidths)]


def run(settings: Settings, *, report: Path | None = None, as_json: bool = False) -> None:
    """The whole comparison: a table, and JSON and a report where asked for."""
    systems, links, models = settings.chosen_systems(), settings.links(), settings.chosen_models()
    with (
        Bench(
            "e2e",
            as_json=as_json,
            report=report,
            columns=COLUMNS,
            compare_with=(PLAIN, "none"),
            title="HAPI beside plain PyTorch, end to end",
            plots=plots(),
            finish=judged,
        ) as bench,
        hosts(settings, bench.say) as (bed, stores),
    ):
        if missing := settings.left_out():
            bench.remark(f"not compared, as they are not installed: {', '.join(missing)} (uv pip install '{EXTRA}')")
        for remark in bed.remarks:
            bench.remark(remark)
        bench.remark("plain's compute time, which rho is relative to, is that of its fastest epoch without a limit")
        if settings.repeats > 1:
            bench.remark(
                f"runs of less than {SHORT_SECONDS:g} s were made {settings.repeats} times, the later ones with what "
                "was measured in the first, and the middle one counts; start-up is that of the first"
            )
        for remark in (*stores[models[0]].remarks, *counted(settings, models, stores), *batched(settings, stores)):
            bench.remark(remark)
        companions = {store.uri: Companions(bed, store, bench.remark) for store in stores.values()}
        for model in models:
            store = stores[model]
            experiment = Experiment(settings, bench, bed, store, companions[store.uri], model)
            with bench.step(system="mix", model=model.removeprefix("torchvision:")):
                experiment.whole(systems, links)


@contextlib.contextmanager
def hosts(settings: Settings, say: Callable[[str], None]) -> Iterator[tuple[Testbed, Mapping[str, Store]]]:
    """The testbed, and each network's photographs in its store; or this machine and servers elsewhere."""
    models = settings.chosen_models()
    if settings.server or settings.s3_endpoint:
        if not (settings.server and settings.data and settings.data.startswith("s3://")):
            raise InputError("servers elsewhere: give --server URL and --data s3://bucket/prefix, what it serves.")
        endpoint = {"HAPI_S3_ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {}
        with open_testbed(link=RealLink(settings.server, settings.s3_endpoint or settings.data)) as bed:
            yield bed, dict.fromkeys(models, Store(settings.data, 0, 0, endpoint, endpoint))
        return
    parse_samples(settings.samples)  # what is wrong there is told before anything starts
    with open_testbed(settings.testbed, storage_cpus=settings.storage_cpus, compute_cpus=settings.compute_cpus) as bed:

        def pace(model: str) -> float:
            say(f"{model}: plain's seconds per photograph, roughly ...")
            try:
                return measured_pace(bed, model, settings.weights)
            except ProgramFailedError as error:  # its rows will fail, too, and say why
                say(str(error))
                return float("inf")

        default = QUICK_SAMPLES if settings.quick else None
        counts = sample_counts(models, settings.samples, default, pace)
        most = max(counts.values())
        say(f"putting {most} photographs into an S3 server ...")
        with photographs(settings.data, most, seed=settings.seed) as folder:
            yield bed, _stores(bed, folder, counts)


def _stores(bed: Testbed, folder: Path, counts: Mapping[str, int]) -> dict[str, Store]:
    """A bucket for every count, the largest first: model -> store."""
    by_count: dict[int, Store] = {}
    for wanted in sorted(set(counts.values()), reverse=True):
        with enough(folder, wanted) as part:
            if not by_count:
                store = by_count[wanted] = start_store(bed, part)
            else:
                by_count[wanted] = put_photographs(bed, store, part, f"{BUCKET}-{wanted}")
    has = count(folder)
    if max(by_count) > has:
        repeated = f"of the {has} photographs, samples beyond that many are the same ones under further names"
        by_count = {wanted: replace(one, remarks=(*one.remarks, repeated)) for wanted, one in by_count.items()}
    return {model: by_count[wanted] for model, wanted in counts.items()}


def counted(settings: Settings, models: Sequence[str], stores: Mapping[str, Store]) -> list[str]:
    """What is to be said of how many photographs there are."""
    said = ", ".join(f"{model.removeprefix('torchvision:')} {stores[model].samples}" for model in models)
    if settings.samples or settings.quick or settings.server:
        return []
    return [
        f"photographs per network: {said}: so many that plain computes for about {TARGET_SECONDS:.0f} s, at least "
        f"{LEAST} (--samples says otherwise)"
    ]


def batched(settings: Settings, stores: Mapping[str, Store]) -> list[str]:
    """What is to be said of batches that are smaller than usual."""
    sizes = {model: batch_size(store.samples) for model, store in stores.items()}
    small = ", ".join(f"{model.removeprefix('torchvision:')} {size}" for model, size in sizes.items()
                      if size < MOST_BATCH)  # fmt: skip
    if settings.batch_size or not small:
        return []
    return [
        f"training batches of fewer than {MOST_BATCH}: {small}: so that an epoch has {LEAST_BATCHES}, as what one "
        "worker of plain's loader makes overlaps with others only (--batch-size says otherwise)"
    ]


class Experiment:
    """One network on one testbed."""

    def __init__(
        self, settings: Settings, bench: Bench, bed: Testbed, store: Store, companions: Companions, model: str
    ) -> None:
        self._settings, self._bench, self._bed, self._store, self._model = settings, bench, bed, store, model
        self._companions = companions
        self._batch_size = settings.batch_size or batch_size(store.samples)
        self._bytes_per_epoch = 0
        self._compute_seconds: float | None = None
        self._sent: SentModel | None = None

    def whole(self, systems: tuple[str, ...], links: Sequence[tuple[float | None, float | None]]) -> None:
        """All rows of the network; raises what kept the storage server from having it."""
        self._bench.say(f"{self._model} without a limit, for its compute time:")
        compute_seconds = self.calibrate()
        self.send()
        for rho, rate in links:
            if rate is None and compute_seconds is None:
                self._bench.remark(f"{self._model}: plain did not run, so no bandwidth follows from rho {rho}")
                continue
            self.cell(systems, rho, rate, compute_seconds)

    def send(self) -> None:
        """Gives the storage server the network beforehand, unless that shall be part of every start-up."""
        if self._settings.upload or self._settings.server:
            return
        self._bed.link.shape(None)
        self._bench.say("  sending the network to the storage server beforehand ...")
        is_compiled = self._settings.compile
        self._sent = send_model(self._bed, self._store, self._model, self._settings.weights, is_compiled=is_compiled)
        self._bench.remark(
            f"{self._model}: the storage server had the network's {format_bytes(self._sent.bytes)} already, "
            "as after a first job (--upload counts sending it in every start-up)"
        )
        if self._sent.compiled is not None:
            self._bench.remark(
                f"{self._model}: compiled beforehand for both tiers, as after longer jobs: {self._sent.compiled} "
                "(--no-compile leaves that out)"
            )

    def calibrate(self) -> float | None:
        """Plain without a limit: a row, and the seconds of its fastest epoch; None if it failed."""
        self._bed.link.shape(None)
        epochs = max(CALIBRATION_EPOCHS, self._settings.epochs)
        row = self._measure(PLAIN, None, None, epochs)
        if row.failed:
            return None
        self._bytes_per_epoch = (row.bytes or 0) // epochs
        self._compute_seconds = float(min(row.get("epoch_seconds")))
        return self._compute_seconds

    def cell(self, systems: tuple[str, ...], rho: float | None, rate: float | None, compute: float | None) -> None:
        """Every system at one bandwidth, which follows from rho, or rho from it."""
        if rate is None:
            assert rho is not None
            assert compute is not None
            rate = 8 * self._bytes_per_epoch / (rho * compute)
        elif compute is not None:
            rho = 8 * self._bytes_per_epoch / rate / compute
        self._bed.link.shape(rate)
        at = f"rho {rho:.3g}, " if rho is not None else ""
        self._bench.say(f"{self._model} at {at}{format_bandwidth(rate)}:")
        for system in systems:
            self._measure(system, rate, rho)

    def _measure(self, system: str, rate: float | None, rho: float | None, epochs: int | None = None) -> Row:
        """One row, of a system that may have failed."""
        settings = self._settings
        epochs = epochs or settings.epochs
        self._bench.say(f"  {system} ...")
        with self._bench.trial(
            system=system,
            model=self._model.removeprefix("torchvision:"),
            bandwidth_bits_per_s=rate,
            rho=rho,
            epochs=epochs,
            samples=self._store.samples or None,
            batch_size=self._batch_size,
        ) as trial:
            with self._caches() as (client, kept):
                runs = [self._run(system, rate, epochs, client, kept)]
                while runs[0]["seconds"] < SHORT_SECONDS and len(runs) < settings.repeats:
                    runs.append(self._run(system, rate, epochs, client, kept))
            trial.measured(note=note_of(system, epochs), **middle(runs))
        return trial.row

    @contextlib.contextmanager
    def _caches(self) -> Iterator[tuple[Mapping[str, str], Path]]:
        """A client's variables and a server's folder, in which there is nothing but the network: runs that follow one
        another find what either side measured."""
        with (
            fresh_caches(self._bed.folder, self._sent) as client,
            tempfile.TemporaryDirectory(prefix="kept-", dir=self._bed.folder) as kept,
        ):
            if self._sent is not None:
                self._sent.give_server(Path(kept))
            yield client, Path(kept)

    def _run(
        self, system: str, rate: float | None, epochs: int, caches: Mapping[str, str], kept: Path
    ) -> dict[str, Any]:
        """What one run measured, beside a fresh server that has no features."""
        settings = self._settings
        with self._companions.options(system) as own, self._server(system, kept) as server:
            job = Job(
                self._store.uri,
                self._model,
                settings.weights,
                epochs,
                self._batch_size,
                settings.seed,
                settings.device,
                server.url if server else None,
                (*settings.train_options, *self._engine(system)),
                own,
                self._bed.compute.processors,
            )
            command = command_of(system, job)
            variables = {**self._store.for_compute, **(server.variables if server else {}), **caches}
            carried, worked = self._bed.link.carried(), self._bed.cpu_seconds(self._bed.storage)
            most = self._most_seconds(rate, epochs)
            outcome = self._bed.run(self._bed.compute, command, variables, seconds=most)
            worked = self._bed.cpu_seconds(self._bed.storage) - worked
            return {
                **values(outcome),
                "storage_cpu_seconds": worked if self._is_counted(system) else None,
                "server_stages": server.stages(self._bed) if server else {},
                **_on_the_link(carried, self._bed.link.carried()),
            }

    def _is_counted(self, system: str) -> bool:
        """Whether what a system takes of the storage host's processors is known: not of one elsewhere."""
        return self._bed.kind != "hosts" and system not in UNCOUNTED

    def _most_seconds(self, rate: float | None, epochs: int) -> float:
        """After which a run is given up: whatever it does, the other rows shall come."""
        if self._compute_seconds is None:
            return CALIBRATION_SECONDS
        link = 8 * self._bytes_per_epoch / rate if rate else 0.0
        return START_SECONDS + PATIENCE * epochs * (self._compute_seconds + link)

    def _engine(self, system: str) -> tuple[str, ...]:
        """What makes `none` run on the engine at once, which otherwise only captured networks do."""
        return ("--engine", "compiled") if system == "none" and self._settings.compile else ()

    @contextlib.contextmanager
    def _server(self, system: str, kept: Path) -> Iterator[Server | None]:
        if not needs_server(system):
            yield None
        elif self._settings.server:
            yield Server(self._settings.server)
        else:
            with start_server(self._bed, self._store, self._settings.serve_options, cache=kept) as server:
                yield server


def values(outcome: Outcome) -> dict[str, Any]:
    """What a client's document says, as values of a row."""
    document = outcome.document
    epoch_seconds = [float(seconds) for seconds in document["epoch_seconds"]]
    plan = document.get("plan") or {}
    first = document.get("first_plan") or plan  # the limit of a later one counts what was slower than it should be
    return {
        "samples": document["train_samples"],
        "seconds": sum(epoch_seconds),
        "bytes": document["bytes_received"],
        "epoch_seconds": epoch_seconds,
        "cold_seconds": epoch_seconds[0],
        "start_seconds": outcome.seconds - sum(epoch_seconds),
        "wall_seconds": outcome.seconds,
        "client_cpu_seconds": outcome.cpu_seconds,
        "peak_bytes": document["peak_rss_bytes"],
        "losses": document["losses"],
        "cuts": plan.get("cuts", []),
        "predicted_seconds": first.get("predicted_seconds"),
        "plan_limit_seconds": first.get("limit_seconds"),
        "reasons": plan.get("reasons", []),
        "client_stages": document.get("stages", {}),
    }


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run of the middle by its seconds, with the start-up of the first, which had to measure; of several with
    `each_run`, the seconds of all in their order."""
    chosen = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    if len(runs) == 1:
        return chosen
    first = {name: runs[0][name] for name in STARTING if name in runs[0]}
    return {**chosen, **first, "each_run": [run["seconds"] for run in runs]}


def _on_the_link(before: tuple[int, int] | None, after: tuple[int, int] | None) -> dict[str, Any]:
    """All that crossed the link during the whole run, uploads and measurements included."""
    if before is None or after is None:
        return {}
    return {"link_bytes_to_compute": after[0] - before[0], "link_bytes_to_storage": after[1] - before[1]}


@contextlib.contextmanager
def fresh_caches(folder: Path, sent: SentModel | None = None) -> Iterator[Mapping[str, str]]:
    """Variables that give a client a cache folder with compiled code at most, and leave downloaded weights in place."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with tempfile.TemporaryDirectory(prefix="client-", dir=folder) as fresh:
        if sent is not None:
            sent.give_client(Path(fresh))
        yield {
            "XDG_CACHE_HOME": fresh,
            "TORCH_HOME": os.environ.get("TORCH_HOME") or str(usual / "torch"),
            "HF_HOME": os.environ.get("HF_HOME") or str(usual / "huggingface"),
        }
