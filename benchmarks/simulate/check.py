"""The simulation held against the testbed: the same few cases, measured there, and simulated from what was measured.

The storage host and the compute host have a processor each. On the compute host one process plays 1, 2 and 4 tenants,
each with a token and photographs of its own. Before and after them it measures the link and the profile; the simulation
is given the means of these, and of each case the mean batch that its server took, but nothing of its times.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from benchmarks.bench.photographs import multiplied, photographs
from benchmarks.bench.run import Bench
from benchmarks.simulate.cluster import ClusterSpec, simulate
from benchmarks.simulate.tenants import IN_FLIGHT, JobSpec
from benchmarks.testbed.services import Server, Store, start_server, start_store
from benchmarks.testbed.testbed import Testbed, open_testbed
from compute_client.loader import DEFAULT_BUFFER_BYTES
from compute_client.spans import span_size
from hapi.errors import HapiError
from hapi.plan import Link, Plan, Profile, Share
from hapi.units import format_bandwidth

TOLERANCE = 0.10
"""A simulation that is further off than this from what was measured is wrong."""
TENANTS = (1, 2, 4)
DEPTHS = (1.0, 0.6)
"""Of the cuts, as parts of the network's: its end, and one of which more travels and where the client works."""
PHOTOGRAPHS = 48
SAMPLES, QUICK_SAMPLES = 160, 48
TIMEOUT_SECONDS = 1800.0
ALONE = {"HAPI_SERVER_FEATURE_CACHE_BYTES": "0", "HAPI_SERVER_ENGINE": "eager"}
"""Every sample is computed, and none by code that is compiled half-way."""


@dataclass(frozen=True)
class Case:
    """What was measured: tenants that want as many samples each, at one cut, behind one link of one rate."""

    bandwidth_bits_per_s: float
    cut: str
    tenants: int
    seconds: float
    bytes: int
    batch: int
    """Samples that the server took at once, in the mean: a batch is not always whole, and the first ones are small."""


def run_check(
    bench: Bench,
    model: str,
    bandwidths: Sequence[float],
    *,
    data: str | None = None,
    testbed: str = "auto",
    samples: int,
    seed: int = 0,
    quick: bool,
) -> None:
    """Adds a row for every case, failed where the simulation is too far off."""
    with (
        photographs(data, min(PHOTOGRAPHS, samples), seed=seed) as few,
        multiplied(few, max(TENANTS) * samples) as folder,
        open_testbed(testbed) as bed,
    ):
        for remark in bed.remarks:
            bench.remark(remark)
        bench.say(f"{max(TENANTS) * samples} photographs into the store")
        store = start_store(bed, folder)
        for remark in store.remarks:
            bench.remark(remark)
        with start_server(
            bed, replace(store, for_storage={**store.for_storage, **ALONE}), tenants=max(TENANTS)
        ) as server:
            for rate in bandwidths:
                bed.link.shape(rate)
                bench.say(f"{model} at {format_bandwidth(rate)}: measuring the hosts, then the cases")
                keys = {"model": model.removeprefix("torchvision:"), "bandwidth_bits_per_s": rate, "samples": samples}
                try:
                    profile, cases = measured(bed, store, server, model, rate, samples, repeats=1 if quick else 3)
                except HapiError:
                    with bench.trial(system="testbed", **keys):
                        raise
                else:
                    for case in cases:
                        more = {"nodes": 1, "tenants": case.tenants, "cut": case.cut}
                        with bench.trial(system="testbed", **keys, **more) as trial:
                            trial.measured(seconds=case.seconds, bytes=case.bytes, batch=case.batch)
                            trial.measured(**judged(case, profile, samples))


def measured(
    bed: Testbed, store: Store, server: Server, model: str, rate: float, samples: int, *, repeats: int
) -> tuple[Profile, list[Case]]:
    """The profile with the link, and the cases, as the compute host measured them; of repeats the median counts."""
    wanted = {
        "url": server.url,
        "tokens": server.tokens,
        "data": store.uri,
        "model": model,
        "samples": samples,
        "cases": [(depth, tenants) for depth in DEPTHS for tenants in TENANTS],
        "repeats": repeats,
    }
    words = [sys.executable, "-m", "benchmarks.simulate.fleet"]
    variables = {**server.variables, "HAPI_FLEET": json.dumps(wanted)}
    told = bed.run(bed.compute, words, variables, seconds=TIMEOUT_SECONDS).document
    return mean([Profile.from_json(document) for document in told["profiles"]]), list(_cases(told, rate))


def mean(profiles: Sequence[Profile]) -> Profile:
    """Of profiles of one network the mean costs and the mean link: machines are not equally fast all the time."""
    links = [profile.link for profile in profiles if profile.link is not None]
    cuts = []
    for same in zip(*(profile.cuts for profile in profiles), strict=True):
        server, client = fmean(cut.server_seconds for cut in same), fmean(cut.client_seconds for cut in same)
        cuts.append(replace(same[0], server_seconds=server, client_seconds=client, wire=()))
    link = Link(fmean(one.bandwidth_bits_per_s for one in links), fmean(one.latency_seconds for one in links))
    return replace(profiles[0], cuts=tuple(cuts), link=link)


def _cases(told: Mapping[str, Any], rate: float) -> Iterator[Case]:
    for case in told["cases"]:
        yield Case(rate, case["cut"], case["tenants"], median(case["seconds"]), case["bytes"], case["batch"])


def judged(case: Case, profile: Profile, samples: int) -> dict[str, Any]:
    """Values of the case's row: simulated seconds, their ratio to those measured, and the failure if it is far off."""
    seconds = simulated(case, profile, samples)
    ratio = seconds / case.seconds
    values = {"simulated_seconds": seconds, "simulated_over_measured": ratio}
    if abs(ratio - 1) > TOLERANCE:
        note = f"the simulation takes {ratio:.2f} times what was measured; within {TOLERANCE:.0%} was promised"
        return {**values, "failed": True, "note": note}
    return values


def simulated(case: Case, profile: Profile, samples: int) -> float:
    """Makespan of the case in the simulation: one node, and tenants on one host behind one interface."""
    assert profile.link is not None
    rate = profile.link.bandwidth_bits_per_s
    cost = profile.cut(case.cut)
    span = span_size(
        max(TENANTS) * samples,
        cost.out_bytes,
        limit_bytes=DEFAULT_BUFFER_BYTES // (2 * IN_FLIGHT),
        in_flight=IN_FLIGHT,
    )
    job = JobSpec(
        profile,
        Plan("check", (Share(case.cut, 1.0),), None, None),
        rate,
        profile.link.latency_seconds,
        samples,
        1,
        span,
        host=0,
    )
    return simulate(ClusterSpec(1, rate, batch=case.batch), [job] * case.tenants).makespan_seconds
