"""Trains beside a link that is dropped and restored, once with every system."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.options import check_known
from benchmarks.bench.photographs import photographs
from benchmarks.bench.run import Bench
from benchmarks.e2e.experiment import fresh_caches
from benchmarks.replan.phases import Batch, reached, read_batches, unsettled
from benchmarks.testbed.processes import Outcome, ProgramFailedError
from benchmarks.testbed.services import Server, Store, start_server, start_store
from benchmarks.testbed.testbed import Testbed, open_testbed
from compute_client.spans import span_size
from hapi.errors import HapiError
from hapi.plan import Profile
from profiler.planner import plan

SYSTEMS = {"mix": ("auto", True), "mix-fixed": ("auto", False), "none": ("none", False)}
"""What the loader is given: pushdown, and whether it may change its plan."""
PHASES = ("before", "dropped", "restored")
PARTS = {"before": 1.0, "dropped": 2.0, "restored": 1.5}
"""Times as long as the first phase is each: a slow link takes longer to settle, and a plan that follows has to see it.
"""
WARM_SAMPLES = 128
"""Yielded before the first phase begins."""
IN_FLIGHT, BUFFER_BYTES = 6, 2**26
"""Of the client. With more bytes under way a job lives longer on what it had asked for before the link changed, and the
phases would have to be as much longer."""
ENGINE = "eager"
"""Of both tiers: nothing is compiled in the background, so that a rate that changes is the link's doing."""
SERVE = ("--feature-cache-bytes", "0", "--engine", ENGINE)
START_SECONDS = 180.0
LOOK_SECONDS = 0.2
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """What is trained, on which link, and for how long in the first phase (`PARTS` tells of the others)."""

    model: str
    bits_per_s: float
    factor: float
    phase_seconds: float
    samples: int
    systems: tuple[str, ...] = tuple(SYSTEMS)
    batch_size: int = 32
    data: str | None = None
    weights: str = "none"
    seed: int = 0
    testbed: str = "auto"

    def __post_init__(self) -> None:
        check_known("system", self.systems, SYSTEMS)

    def rate(self, phase: str) -> float:
        """Of the link, bits per second."""
        return self.bits_per_s / self.factor if phase == "dropped" else self.bits_per_s

    def seconds(self, phase: str) -> float:
        """For which a phase lasts."""
        return self.phase_seconds * PARTS[phase]


def run(settings: Settings, bench: Bench) -> None:
    """Adds a row per system and phase."""
    with (
        photographs(settings.data, settings.samples, seed=settings.seed) as folder,
        open_testbed(settings.testbed) as bed,
    ):
        for remark in bed.remarks:
            bench.remark(remark)
        store = start_store(bed, folder)
        for remark in store.remarks:
            bench.remark(remark)
        bed.link.shape(settings.bits_per_s)
        with (
            fresh_caches(bed.folder) as caches,  # what either side measures is remembered by all runs
            start_server(bed, store, SERVE) as server,  # keeps no features: every pass is as the first
        ):
            hosts = Hosts(bed, store, server, caches)
            bench.say(f"{settings.model}: measuring both tiers and the link ...")
            profile = _profile(settings, hosts)
            for system in settings.systems:
                _measure(system, settings, bench, hosts, profile)


@dataclass(frozen=True)
class Hosts:
    """The testbed with its store and server, and what the clients keep from run to run: measurements."""

    bed: Testbed
    store: Store
    server: Server
    client_caches: Mapping[str, str]

    def span(self, samples_per_s: float) -> int:
        """Samples that are asked for at once, as the loader has it for all but huge ones, at this pace."""
        return span_size(
            self.store.samples, 1.0, limit_bytes=BUFFER_BYTES, in_flight=IN_FLIGHT, per_second=samples_per_s
        )

    def run(self, settings: Settings, words: Sequence[str], seconds: float) -> Outcome:
        """The client on the compute host."""
        variables = {**self.store.for_compute, **self.server.variables, **self.client_caches}
        job = ["--data", self.store.uri, "--model", settings.model, "--weights", settings.weights]
        job += ["--server", self.server.url, "--batch-size", str(settings.batch_size), "--engine", ENGINE]
        command = [sys.executable, "-m", "benchmarks.replan.client", *job, *words]
        return self.bed.run(self.bed.compute, command, variables, seconds=seconds)


def limit(settings: Settings, profile: Profile, phase: str) -> float:
    """Samples per second of the best mix in the steady state of a phase: the link gives as much of its rate as it gave
    when it was measured."""
    assert profile.link is not None
    rate = profile.link.bandwidth_bits_per_s * settings.rate(phase) / settings.bits_per_s
    seconds = plan(profile, "mix", bandwidth=rate, samples=0, epochs=1).limit_seconds
    assert seconds is not None
    return 1 / seconds


def _profile(settings: Settings, hosts: Hosts) -> Profile:
    """What every cut costs on this testbed, with the link at its full rate."""
    return Profile.from_json(hosts.run(settings, ["--profile"], START_SECONDS).document)


def _measure(system: str, settings: Settings, bench: Bench, hosts: Hosts, profile: Profile) -> None:
    keys = {"system": system, "model": settings.model.removeprefix("torchvision:"), "batch_size": settings.batch_size}
    try:
        batches, moments, outcome = _trained(system, settings, hosts)
    except (HapiError, TimeoutError) as error:
        for phase in PHASES:
            with bench.trial(**keys, phase=phase, bandwidth_bits_per_s=settings.rate(phase)):
                raise error
        return
    history = outcome.document["plan"].get("history", [])
    span = hosts.span(limit(settings, profile, PHASES[0]))
    for phase, begin, end in zip(PHASES, moments, moments[1:], strict=False):
        with bench.trial(**keys, phase=phase, bandwidth_bits_per_s=settings.rate(phase)) as trial:
            found, most = reached(batches, begin, end, span, IN_FLIGHT), limit(settings, profile, phase)
            if found is None:
                found = unsettled(batches, begin, end)
                trial.measured(note="it had not settled when the phase ended: all that came in it is counted")
            trial.measured(
                samples=found.samples,
                seconds=found.seconds,
                bytes=found.bytes,
                limit_seconds=found.samples / most,
                samples_per_s=found.rate,
                limit_samples_per_s=most,
                rate_to_limit=found.rate / most,
                plan_changes=found.changes,
                settling_seconds=found.settling_seconds,
                history=[change for change in history if begin < change["at"] <= end],
                begin=begin,
                batches=[[batch.at - begin, batch.samples] for batch in batches if begin <= batch.at <= end],
            )


def _trained(system: str, settings: Settings, hosts: Hosts) -> tuple[list[Batch], list[float], Outcome]:
    """The batches of one run, and the moments at which its phases began; the last one ends the last phase."""
    pushdown, replan = SYSTEMS[system]
    bed = hosts.bed
    progress = bed.folder / f"progress-{system}.jsonl"
    stop = Path(f"{progress}.stop")
    moments: list[float] = []
    bed.link.shape(settings.bits_per_s)
    with ThreadPoolExecutor(1, thread_name_prefix="client") as pool:
        running = pool.submit(_client, settings, hosts, progress, pushdown, replan)
        try:
            _wait(lambda: _yielded(progress) >= WARM_SAMPLES, running, START_SECONDS)
            for phase in PHASES:
                bed.link.shape(settings.rate(phase))
                moments.append(time.time())
                ends = moments[-1] + settings.seconds(phase)
                _wait(lambda ends=ends: time.time() >= ends, running, None)  # type: ignore[misc]
            moments.append(time.time())
        finally:
            stop.touch()
            bed.link.shape(settings.bits_per_s)
        return read_batches(progress), moments, running.result(STOP_SECONDS)


def _client(settings: Settings, hosts: Hosts, progress: Path, pushdown: str, replan: bool) -> Outcome:
    most = START_SECONDS + sum(settings.seconds(phase) for phase in PHASES) + STOP_SECONDS
    words = ["--progress", str(progress), "--pushdown", pushdown, "--samples", str(hosts.store.samples)]
    words += ["--in-flight", str(IN_FLIGHT), "--buffer-bytes", str(BUFFER_BYTES)]
    words += [] if replan else ["--no-replan"]
    return hosts.run(settings, [*words, "--most-seconds", str(most)], 2 * most)


def _yielded(progress: Path) -> int:
    batches = read_batches(progress)
    return batches[-1].samples if batches else 0


def _wait(until: Callable[[], bool], running: Future[Outcome], seconds: float | None) -> None:
    """Until something is so; what the client died of, if it does; ProgramFailedError after so many seconds."""
    begun = time.monotonic()
    while not until():
        if running.done():
            running.result()
            raise ProgramFailedError("the client ended before it was told to.")
        if seconds is not None and time.monotonic() - begun > seconds:
            raise ProgramFailedError(f"the client had not {WARM_SAMPLES} samples within {seconds:.0f} s.")
        time.sleep(LOOK_SECONDS)
