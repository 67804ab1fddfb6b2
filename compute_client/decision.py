"""The plan of a loader: made at first use, and followed while its job runs."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from compute_client.pipeline import Finished
from compute_client.planning import policy_of
from compute_client.replanning.activity import Activity
from compute_client.replanning.dealing import Dealing, Need
from compute_client.replanning.observer import Observer
from compute_client.replanning.replanner import Replanner
from hapi.cancel import Cancel, CancelledWork
from hapi.errors import HapiError
from hapi.plan import INPUT, Change, Plan, Profile, Share
from profiler.remote import ServerClient

log = logging.getLogger(__name__)

PROBE_SECONDS, MOST_PROBE_SECONDS, PROBE_BYTES, PROBE_STREAMS = 0.1, 1.0, 2**23, 2
"""Of looking at the link while a job runs: shorter than before its first plan, as spans wait meanwhile."""
LEAST_PROBE_BYTES = 1024
"""Of its first transfer, however little the link is known to give."""


class Decision:
    """Which plan a loader runs. Thread-safe."""

    def __init__(self, decide: Callable[[], Plan], prepare: Callable[[Iterable[str]], None]) -> None:
        """`decide` makes the plan when it is first needed, and may call `follow` while it does.

        `prepare` is called with the names of a new plan's cuts before anything is dealt to them.
        """
        self._decide, self._prepare = decide, prepare
        self._lock = threading.RLock()
        self._plan: Plan | None = None
        self._replanner: Replanner | None = None
        self._is_dealt_late = False
        self.observer: Observer | None = None
        """Of what the tiers and the link give, if the plan is followed."""

    @property
    def plan(self) -> Plan:
        """Decided at first use, which may mean measuring both tiers."""
        with self._lock:
            if self._plan is None:
                self._plan = self._decide()
            return self._plan

    @property
    def is_made(self) -> bool:
        """Whether there is a plan already."""
        return self._plan is not None

    @property
    def is_followed(self) -> bool:
        """Whether the plan may still change."""
        return self._replanner is not None

    def adopt(self, plan: Plan) -> None:
        """This is the plan from now on."""
        with self._lock:
            self._plan = plan

    def deal_late(self) -> None:
        """Spans go where there is room for them, also by a plan that does not change."""
        self._is_dealt_late = True

    def follow(self, plan: Plan, profile: Profile, pushdown: str, activity: Activity, server: ServerClient) -> None:
        """Begins to watch the rates that a plan was made from."""
        assert profile.link is not None
        self.observer = Observer(profile, activity)
        probe = partial(probed, server, profile.link.latency_seconds)
        self._replanner = Replanner(plan, profile, policy_of(pushdown), self.observer, probe=probe)

    def dealing(
        self,
        default: tuple[str, str],
        sizes: Callable[[Plan], Mapping[str, int]],
        seconds: Callable[[Plan], float | None],
    ) -> Dealing | None:
        """What deals spans of such sizes by the plan of the moment, which predicts so many seconds for each sample;
        None where they are dealt beforehand."""
        is_late = self.is_followed or self._is_dealt_late
        return Dealing(lambda: self.plan, self.reconsider, default, sizes, seconds, self._needs) if is_late else None

    def _needs(self, plan: Plan) -> dict[str, Need]:
        """What a sample of each of the plan's cuts takes; empty if that was not measured."""
        replanner = self._replanner
        return {} if replanner is None else {share.name: replanner.need(share) for share in plan.cuts}

    def finished(self, finished: Finished) -> None:
        """A span is done."""
        if self.observer is not None:
            span = finished.span
            self.observer.finished(span.cut, span.way, len(span))

    def reconsider(self, cancel: Cancel) -> None:
        """Changes the plan if the rates have changed, and prepares what new cuts need."""
        if self._replanner is None:
            return
        try:
            plan = self._replanner.consider(cancel)
            if plan is not None:
                log.info("the plan has changed: %s", plan.history[-1])
                self._prepare([share.name for share in plan.cuts])
                with self._lock:
                    if self._replanner is not None:  # the server was not given up meanwhile
                        self.adopt(plan)
        except Exception:  # whatever it is, the job has a plan that works
            log.exception("the plan stays as it is from now on, since changing it failed")
            self._replanner = None

    def give_server_up(self, reason: str) -> None:
        """Everything is computed here from now on, and the plan changes no more."""
        self._prepare([INPUT])
        with self._lock:
            self._replanner = None
            old, cuts = self.plan, (Share(INPUT, 1.0),)
            change = Change(time.time(), old.cuts, cuts, reason)
            self.adopt(
                replace(old, cuts=cuts, predicted_seconds=None, limit_seconds=None, history=(*old.history, change))
            )


def probed(server: ServerClient, latency: float, known: float, cancel: Cancel) -> float | None:
    """What the link gives beside what is under way, bits per second; None if the server has no time for that, or once
    cancelled.

    `latency` is what it had with nothing else on it, seconds, 0 if that was not measured; `known` is what it gave so
    far: as long as it gives no more, the look takes little more of it than PROBE_SECONDS.
    """
    from profiler.link import FIRST_BYTES, HEADROOM, probe_link

    meanwhile = int(HEADROOM * known * PROBE_SECONDS / 8)
    try:
        return probe_link(
            partial(server.link, cancel=cancel),
            seconds=PROBE_SECONDS,
            max_bytes=PROBE_BYTES,
            max_seconds=MOST_PROBE_SECONDS,
            streams=PROBE_STREAMS,
            first_bytes=max(LEAST_PROBE_BYTES, min(FIRST_BYTES, meanwhile)),
            latency_probes=1,
            most_latency=latency or math.inf,
        ).bandwidth_bits_per_s
    except CancelledWork:
        return None
    except HapiError as error:
        if not cancel.is_set:  # or it is the connection that was broken off
            log.info("the link could not be probed: %s", error)
        return None
