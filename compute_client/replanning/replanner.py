"""Solves the mix of cuts anew when the rates that it was made from have changed, and tells why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

import numpy as np

from compute_client.replanning.dealing import Need
from compute_client.replanning.observer import Observer
from compute_client.replanning.rates import Rates
from hapi.cancel import Cancel
from hapi.plan import INPUT, OUTPUT, Change, Plan, Profile, Share, WireCost
from profiler.pipeline import Pipeline

GAIN = 1.1
"""Least predicted gain for which a plan is changed."""
NEW_GAIN = 1.15
"""Least predicted gain over the best of the cuts that were used before, for which others are taken: the server has to
make each of them ready, about a second in which all requests wait."""
LEAST_SECONDS = 0.25
"""Between two looks."""
PROBE_SECONDS, MOST_PROBE_SECONDS = 1.0, 8.0
"""Before the link is probed, and at most between two probes when they find nothing new."""
PROBE_FACTOR = 4.0
"""If a link that gives so many times more would be of use, it is worth looking whether it does."""
FORGET_SAMPLES = 4096
"""After so many samples without any work of the server, it is taken to be as its profile said again."""
MOST_CHANGES = 256
"""Changes that a plan's history remembers."""


class Replanner:
    """The plan of a running job. Thread-safe; no thread waits for another's look at it."""

    def __init__(
        self,
        plan: Plan,
        profile: Profile,
        policy: str,
        observer: Observer,
        *,
        probe: Callable[[float, Cancel], float | None] = lambda known, cancel: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`plan` was made from `profile` by `policy`. `probe` is told what the link is known to give, and
        measures it beside what is under way, bits per second; None if it cannot."""
        assert profile.link is not None
        self.plan = plan
        self._profile, self._policy, self._observer = profile, policy, observer
        self._probe, self._clock, self._wall_clock = probe, clock, wall_clock
        self._basis = Rates(profile.link.bandwidth_bits_per_s)
        self._lock = threading.Lock()
        self._reports = 0
        self._next_look = clock()
        self._pause = PROBE_SECONDS
        self._next_probe = clock() + PROBE_SECONDS

    def consider(self, cancel: Cancel) -> Plan | None:
        """The new plan, if the rates have changed so that another one is clearly better.

        Takes milliseconds; or some tenths of a second, where the link is probed: when it is idle and would be of more
        use if it were faster. That is broken off when cancelled.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._consider(cancel)
        finally:
            self._lock.release()

    def need(self, share: Share) -> Need:
        """What a sample of this cut takes, at the rates that the plan was made from."""
        pipeline = Pipeline.of(self._basis.applied(self._profile), server_share=self._basis.server_share)
        server, link, _ = pipeline.costs[:, _column(pipeline, share)]
        return Need(float(server), float(link))

    def _consider(self, cancel: Cancel) -> Plan | None:
        now, reports = self._clock(), self._observer.reports
        if reports == self._reports or now < self._next_look:
            return None
        self._reports, self._next_look = reports, now + LEAST_SECONDS
        if self._observer.unseen_samples > FORGET_SAMPLES:
            self._observer.forget_server()
        rates = self._observer.rates()
        if rates is None:
            return None
        made = self._better(rates) if rates.differs(self._basis) else None
        if made is not None:
            self.plan, self._basis, self._pause = made, rates, PROBE_SECONDS
            self._next_probe = now + self._pause
        elif now >= self._next_probe and not self._observer.is_link_full:
            self._probe_if_useful(rates, cancel)
        return made

    def _better(self, rates: Rates) -> Plan | None:
        """Another plan, if it is clearly faster than the present one at these rates."""
        old = self.plan
        new = self._familiar(rates, self._solved(rates))
        pace, old_pace = self._pace(rates, new.cuts), self._pace(rates, old.cuts)
        if old_pace < GAIN * pace:
            return None
        reason = (
            f"{rates.changes(self._basis)}: {1 / max(pace, 1e-12):.4g} samples/s are predicted for the new mix, "
            f"{1 / max(old_pace, 1e-12):.4g} for the old one"
        )
        change = Change(self._wall_clock(), old.cuts, new.cuts, reason)
        samples = (self._profile.samples or 1) * self._profile.epochs
        return replace(
            new,
            policy=old.policy,
            predicted_seconds=pace * samples,
            limit_seconds=None if new.limit_seconds is None else new.limit_seconds * samples,
            history=(*old.history, change)[-MOST_CHANGES:],
        )

    def _solved(self, rates: Rates, among: Container[str] | None = None) -> Plan:
        """The best plan for a pipeline that is full: samples that are under way already fill it. `among` these cuts,
        and those without which there is no profile."""
        from profiler.planner import plan  # scipy is slow to import

        profile = self._steady(rates)
        if among is not None:
            always = (INPUT, OUTPUT, profile.server_fits_to)
            profile = replace(
                profile, cuts=tuple(cut for cut in profile.cuts if cut.name in always or cut.name in among)
            )
        return plan(profile, self._policy, server_share=rates.server_share)

    def _familiar(self, rates: Rates, best: Plan) -> Plan:
        """Nearly the best plan, of cuts that were used before, if there is one."""
        used = {share.name for share in (*self.plan.cuts, *(cut for past in self.plan.history for cut in past.before))}
        if all(share.name in used for share in best.cuts):
            return best
        usual = self._solved(rates, used)
        is_nearly = self._pace(rates, usual.cuts) < NEW_GAIN * self._pace(rates, best.cuts)
        return replace(usual, limit_seconds=best.limit_seconds) if is_nearly else best

    def _steady(self, rates: Rates) -> Profile:
        return replace(rates.applied(self._profile), samples=0, epochs=1)

    def _pace(self, rates: Rates, cuts: Sequence[Share]) -> float:
        """Seconds per sample of the busiest resource."""
        pipeline = Pipeline.of(self._steady(rates), server_share=rates.server_share)
        shares = np.zeros(len(pipeline.columns))
        for share in cuts:
            shares[_column(pipeline, share)] += share.share
        return float(pipeline.busy_seconds(shares).max())

    def _probe_if_useful(self, rates: Rates, cancel: Cancel) -> None:
        """Looks whether the link gives more than is known, if that would be of use."""
        faster = replace(rates, bits_per_s=PROBE_FACTOR * rates.bits_per_s)
        if self._pace(rates, self.plan.cuts) < GAIN * self._pace(faster, self._solved(faster).cuts):
            self._next_probe = self._clock() + self._pause
            return
        found = self._probe(rates.bits_per_s, cancel)
        self._pause = min(2 * self._pause, MOST_PROBE_SECONDS)
        self._next_probe = self._clock() + self._pause
        if found is not None:
            self._observer.probed(found)
            self._next_look = self._clock()
            self._reports = -1  # look again at once


def _column(pipeline: Pipeline, share: Share) -> int:
    """The column of a cut in the way that a plan says: the job's default, or one that it names."""
    default = pipeline.profile.cut(share.name).wire[:1]
    way = (share.codec, share.compression) if share.codec else None
    columns = [index for index, name in enumerate(pipeline.names) if name == share.name]
    for index in columns:
        wire = pipeline.columns[index].wire
        if (way is None and wire == default) or (way is not None and wire and _way(wire[0]) == way):
            return index
    return columns[0]  # that way was left out, as one that another beats in everything


def _way(cost: WireCost) -> tuple[str, str]:
    return cost.codec, cost.compression
