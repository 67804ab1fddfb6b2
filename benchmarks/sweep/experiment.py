"""Measures every cut of the networks at every bandwidth, and makes rows of what each policy would have chosen."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines.published import freeze_cut
from benchmarks.bench.options import check_known
from benchmarks.bench.photographs import photographs
from benchmarks.bench.rows import Row
from benchmarks.bench.run import Bench
from benchmarks.sweep.cases import CLOSE, MOST_ROUNDS, TURNS, WEIGHT, learned, measure_streams
from benchmarks.sweep.earlier import Earlier
from benchmarks.sweep.judgement import COLUMNS, CUT, PROMISED, is_shown, judged, sentences
from benchmarks.sweep.plots import plots
from benchmarks.sweep.remarks import PAYLOAD, remarks
from benchmarks.sweep.streams import CutPace, Shares, Stream
from benchmarks.sweep.uncertainty import best_cut, error_of_ratio, spread, verdict_on
from benchmarks.testbed.dialogue import Dialogue, dialogue
from benchmarks.testbed.others import TRIES, Watcher, least_disturbed
from benchmarks.testbed.services import Store, start_server, start_store
from benchmarks.testbed.testbed import Testbed, open_testbed
from hapi.plan import INPUT, OUTPUT, Link, Plan, Profile
from hapi.units import format_bandwidth, parse_bandwidth
from profiler.calibration import calibrated, contenders, watched
from profiler.measuring import CPU_BATCH

MODELS = ("alexnet", "resnet18", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x1_0", "resnet50")
BANDWIDTHS = ("20mbit", "63mbit", "200mbit", "500mbit", "1gbit", "2gbit")
QUICK_MODELS, QUICK_BANDWIDTHS, QUICK_ROUNDS = ("alexnet",), ("200mbit",), 1
POLICIES = ("none", "all", "static", "paper", "paper-v1", "single", "mix")
PHOTOGRAPHS = 128
"""So many that requests have eight samples, and those of a cut with a third of a mix six: with half of that a server
computes fours, which networks with large weights take a fifth longer for."""
SECONDS, QUICK_SECONDS = 2.5, 2.0
PLANNED_SAMPLES = 50_000
"""Of the job that is planned: so many that its beginning does not count, as in what is measured."""
OPEN_SECONDS, PROFILE_SECONDS, MOST_SECONDS = 180.0, 180.0, 120.0
SPARE_SECONDS = 90.0
LATENCY_SECONDS = 0.0002
CALIBRATION_PART = 0.6
"""Of the usual time, for which each stream is watched for the profile."""
UNLIMITED = Link(1e10)
"""What a link that is not shaped carries at the least."""
MIXED = "mixed:"
"""Before the policy that chose it: the name of a stream of several cuts."""
SERVE = ("--feature-cache-bytes", "0", "--engine", "eager", "--max-batch", str(CPU_BATCH))
"""As it measures itself for a profile: how it finds other batch sizes takes hundreds of samples of each cut."""


@dataclass(frozen=True)
class Settings:
    """What is measured. Empty tuples and None are the defaults, smaller ones with `quick`."""

    models: tuple[str, ...] = ()
    bandwidths: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    seconds: float | None = None
    samples: int | None = None
    batch_size: int = 8
    data: str | None = None
    weights: str = "none"
    seed: int = 0
    device: str = "cpu"
    testbed: str = "auto"
    quick: bool = False
    resume: bool = False
    """Keep what the folder of the report has of earlier runs, and measure only networks that are not there."""

    def chosen_models(self) -> tuple[str, ...]:
        """As `--model` takes them."""
        wanted = self.models or (QUICK_MODELS if self.quick else MODELS)
        return tuple(name if ":" in name else f"torchvision:{name}" for name in wanted)

    def rates(self) -> list[float]:
        """Bits per second, the fastest first: what is slow there is slow everywhere."""
        wanted = self.bandwidths or (QUICK_BANDWIDTHS if self.quick else BANDWIDTHS)
        return sorted({parse_bandwidth(text) for text in wanted}, reverse=True)

    def chosen_policies(self) -> tuple[str, ...]:
        """InputError for one that is not known."""
        check_known("system", self.policies, POLICIES)
        return self.policies or POLICIES

    @property
    def photographs(self) -> int:
        """How many: they are read again and again."""
        return self.samples or PHOTOGRAPHS

    @property
    def watched_seconds(self) -> float:
        """For which a stream is watched, once it flows."""
        return self.seconds or (QUICK_SECONDS if self.quick else SECONDS)

    @property
    def turns(self) -> int:
        """How often streams are watched for the profile before each bandwidth."""
        return 0 if self.quick else TURNS

    @property
    def rounds(self) -> int:
        """Most further readings of each stream on which a verdict depends."""
        return QUICK_ROUNDS if self.quick else MOST_ROUNDS


def run(settings: Settings, *, report: Path | None = None, as_json: bool = False) -> None:
    """The whole sweep: a table, and JSON and a report where asked for."""
    models, rates, policies = settings.chosen_models(), settings.rates(), settings.chosen_policies()
    earlier = Earlier.read(report) if settings.resume else Earlier()
    with (
        Bench(
            "sweep",
            as_json=as_json,
            report=report,
            columns=COLUMNS,
            title="Is the planner's choice the best?",
            plots=plots(),
            finish=judged,
            shown=is_shown,
        ) as bench,
        photographs(settings.data, settings.photographs, seed=settings.seed) as folder,
        open_testbed(settings.testbed) as bed,
    ):
        told = remarks(settings.watched_seconds, settings.turns, settings.rounds, is_shaped=bed.kind == "namespaces")
        for remark in (*bed.remarks, *told):
            bench.remark(remark)
        earlier.give(bench)
        store = start_store(bed, folder)
        for remark in store.remarks:
            bench.remark(remark)
        for model in models:
            if not earlier.has(name_of(model), rates, policies):
                sweep_model(settings, bench, bed, store, model, rates, policies)
        for sentence in sentences(bench.rows):
            bench.tell(sentence)


def sweep_model(
    settings: Settings,
    bench: Bench,
    bed: Testbed,
    store: Store,
    model: str,
    rates: Sequence[float],
    policies: Sequence[str],
) -> None:
    """One network at all bandwidths, with one server and one client; what breaks there is a row, no more."""
    name = name_of(model)
    bench.rows = [row for row in bench.rows if row.model != name]  # of an earlier run that did not get to its end
    with bench.step(system="mix", model=name):
        bed.link.shape(None)
        with start_server(bed, store, SERVE) as server:
            command = bed.compute.command(sys.executable, "-m", "benchmarks.sweep.client")
            variables = bed.compute.environment({**store.for_compute, **server.variables})
            with dialogue(command, variables) as talk:
                network = Network.open(settings, bed, store, model, server.url, talk)
                names = contenders(network.profile)
                network.calibrate(names, turns=1, weight=1.0)
                bench.say(f"{name}: {len(network.profile.cuts)} cuts, {len(names)} of them watched for the profile")
                faster: dict[str, CutPace] = {}
                for rate in rates:
                    faster = network.at(bench, name, rate, policies, faster)


class Network:
    """One network, its profile, and the client that runs it."""

    def __init__(self, settings: Settings, bed: Testbed, talk: Dialogue, model: str, profile: Profile) -> None:
        self._settings, self._bed, self._talk, self._model = settings, bed, talk, model
        self._watcher = Watcher(bed)
        self.profile = replace(profile, samples=PLANNED_SAMPLES)

    @classmethod
    def open(cls, settings: Settings, bed: Testbed, store: Store, model: str, url: str, talk: Dialogue) -> Network:
        """Gives the server the network and lets both tiers be measured, over a link without a limit."""
        job = {"data": store.uri, "model": model, "server": url, "weights": settings.weights, "engine": "eager"}
        more = {"batch_size": settings.batch_size, "device": settings.device}
        talk.ask({"do": "open", **job, **more}, OPEN_SECONDS)
        again = iter([False, *[True] * TRIES])  # the server remembers what it measured

        def profile() -> dict[str, Any]:
            return talk.ask({"do": "profile", "refresh": next(again)}, PROFILE_SECONDS)

        document, _, _ = least_disturbed(Watcher(bed), profile)
        return cls(settings, bed, talk, model, Profile.from_json(document))

    def calibrate(self, names: Sequence[str], turns: int, weight: float) -> None:
        """Takes what streams over these cuts take into the profile, as `hapi profile --streams` does, over a link
        without a limit. What is judged later is watched anew."""

        def pace(name: str) -> float | None:
            reading = self.watch(((name, 1.0),), CALIBRATION_PART, None)
            return None if reading["is_bound"] else reading["seconds_per_sample"]

        self._bed.link.shape(None)
        self.profile = calibrated(self.profile, watched(names, pace, turns), UNLIMITED, weight)

    def at(
        self, bench: Bench, name: str, rate: float, policies: Sequence[str], faster: Mapping[str, CutPace]
    ) -> dict[str, CutPace]:
        """Rows of every policy and every cut at one bandwidth; answers what was measured of the cuts."""
        payload = rate * (PAYLOAD if self._bed.kind == "namespaces" else 1.0)
        link = Link(payload, LATENCY_SECONDS)
        if self._settings.turns:
            self.calibrate(self._close(link), self._settings.turns, WEIGHT)
        self._bed.link.shape(rate)
        job = replace(self.profile, link=link)
        plans = {policy: self._plan(job, policy) for policy in policies}
        streams = self._streams(job, plans, payload)
        bench.say(f"{name} at {format_bandwidth(rate)}:")
        found = measure_streams(streams, faster, self.watch, rounds=self._settings.rounds)
        best, noise = best_cut(found, streams), spread(found.values())
        situation = {"model": name, "bandwidth_bits_per_s": rate, "epochs": 1, "batch_size": self._settings.batch_size}
        for policy, chosen in plans.items():
            with bench.trial(system=policy, **situation) as trial:
                trial.measured(**self._of_plan(policy, chosen, found))
                if best is not None:
                    ours = stream_of(policy, chosen)
                    trial.measured(
                        best_cut=best.name,
                        best_seconds=best.seconds,
                        ratio_error=error_of_ratio(found[ours], found[best.name], noise),
                        is_near=verdict_on(ours, found, streams, noise).value,
                    )
        for cut in job.cuts:
            pace, stream = found[cut.name], streams[cut.name]
            costs = {"server_seconds": cut.server_seconds, "client_seconds": cut.client_seconds, "bytes": cut.out_bytes}
            row = Row("sweep", CUT + cut.name, note=pace.why).filled(
                predicted_seconds=stream.predicted, link_seconds=stream.floor,
                measured_over_predicted=None if pace.is_bound else pace.seconds / stream.predicted,
                **_seen(pace), **situation, **costs,
            )  # fmt: skip
            bench.rows.append(row)  # not one line each
        self.profile = calibrated(self.profile, learned(found, streams), UNLIMITED, WEIGHT)
        return found

    def _close(self, link: Link) -> list[str]:
        """The cuts that could be the best over a link, and both ends, of which mixes are made."""
        job = replace(self.profile, link=link)
        predicted = {cut.name: per_sample(self._plan(job, cut.name)) for cut in job.cuts}
        most = CLOSE * min(predicted.values())
        return [name for name, seconds in predicted.items() if seconds <= most or name in (INPUT, OUTPUT)]

    def watch(self, shares: Shares, part: float, give_up: float | None) -> dict[str, Any]:
        """Lets the client run a mix of cuts; see `streams.Watch`. Again, if others had much of the processors."""
        seconds = part * self._settings.watched_seconds
        answer, usage, tries = least_disturbed(self._watcher, lambda: self._ask(shares, seconds, give_up))
        told = {"storage_cpu_seconds": usage.storage_seconds, "others": usage.others, "low": usage.low}
        return {**answer, **told, "tries": tries}

    def _ask(self, shares: Shares, seconds: float, give_up: float | None) -> dict[str, Any]:
        cuts = [{"name": name, "share": share} for name, share in shares]
        command = {"do": "watch", "cuts": cuts, "seconds": seconds, "most_seconds": MOST_SECONDS, "give_up": give_up}
        return self._talk.ask(command, MOST_SECONDS + seconds + SPARE_SECONDS)

    def _streams(self, job: Profile, plans: Mapping[str, Plan], payload: float) -> dict[str, Stream]:
        """Every cut by its name, and every plan of several cuts by its policy's."""
        wanted = {stream_of(policy, chosen) for policy, chosen in plans.items()}
        promised = {stream_of(policy, chosen) for policy, chosen in plans.items() if policy in PROMISED}
        floors = {cut.name: 8 * cut.out_bytes / payload for cut in job.cuts}
        streams = {
            cut: Stream(((cut, 1.0),), per_sample(self._plan(job, cut)), floor, cut in wanted, cut in promised)
            for cut, floor in floors.items()
        }
        for policy, chosen in plans.items():
            if len(chosen.cuts) > 1:
                shares = tuple((share.name, share.share) for share in chosen.cuts)
                floor = sum(share * floors[cut] for cut, share in shares)
                name = stream_of(policy, chosen)
                streams[name] = Stream(shares, per_sample(chosen), floor, True, name in promised)
        return streams

    def _plan(self, job: Profile, policy: str) -> Plan:
        from profiler.planner import plan  # scipy is slow to import

        if policy == "static":
            return plan(job, freeze_cut(self._model))
        return plan(job, policy)

    def _of_plan(self, policy: str, chosen: Plan, found: Mapping[str, CutPace]) -> dict[str, Any]:
        """A policy's values: its cut, or its mix, as it was measured."""
        pace = found[stream_of(policy, chosen)]
        values: dict[str, Any] = {
            "cuts": [share.to_json() for share in chosen.cuts],
            "predicted_seconds": per_sample(chosen),
            "limit_seconds": (chosen.limit_seconds or 0.0) / PLANNED_SAMPLES,
            "reasons": list(chosen.reasons),
            "note": pace.why,
        }
        if len(chosen.cuts) == 1:  # its readings are with the cut's row
            return {**values, "seconds": pace.seconds, "is_bound": pace.is_bound}
        return {**values, **_seen(pace)}


def stream_of(policy: str, chosen: Plan) -> str:
    """The name of the stream that a plan makes: its cut's, or one of the policy's own."""
    return chosen.cuts[0].name if len(chosen.cuts) == 1 else MIXED + policy


def name_of(model: str) -> str:
    """As rows have it."""
    return model.removeprefix("torchvision:")


def _seen(pace: CutPace) -> dict[str, Any]:
    readings = [dict(reading) for reading in pace.readings]
    return {"seconds": pace.seconds, "is_bound": pace.is_bound, "is_carried": pace.is_carried, "readings": readings}


def per_sample(plan: Plan) -> float:
    """Predicted seconds of one sample in a long stream."""
    assert plan.predicted_seconds is not None
    return plan.predicted_seconds / PLANNED_SAMPLES
