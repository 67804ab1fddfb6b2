"""The model of time that every decision is made and judged by: three resources that work at once.

A sample that takes cut c occupies the storage server, the link and the client for known seconds. In a steady state the
three work on different samples, so the slowest resource sets the pace; the first request of an epoch passes through
them one after the other. That assumes what the loader does: several requests in flight, and training overlapped with
extraction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hapi.errors import ProfileError
from hapi.plan import INPUT, OUTPUT, CutCost, Profile

FIRST_SAMPLES, FIRST_PART = 64, 16
"""Samples that pass through the resources one after the other before all are busy: at most so many, and of a short
epoch one in so many, as the loader begins with short requests."""
WORTH = 3.0
"""Seconds of the link for which a second of the job is given: a link is often shared with others."""
RESOURCES = ("the storage server", "the link", "the client")


@dataclass(frozen=True)
class Pipeline:
    """A profile as a matrix of costs, with a column per cut and way in which its features may travel.

    Attributes:
        profile: whose cuts, samples, epochs and batch size count.
        columns: the cuts in order, each once per way; its `wire` is then that one way.
        costs: float64 (3, columns), seconds per sample of server, link and client.
        latency_seconds: one round trip, paid once per epoch: later ones hide behind the requests in flight.
    """

    profile: Profile
    columns: tuple[CutCost, ...]
    costs: np.ndarray
    latency_seconds: float

    @classmethod
    def of(cls, profile: Profile, *, server_share: float = 1.0) -> Pipeline:
        """Needs `profile.link` (ProfileError); `server_share` is the part of the server's time that is ours, 0 to 1."""
        if profile.link is None:
            raise ProfileError(
                f"profile of {profile.model!r} says nothing of the link. Give its bandwidth, as in --bandwidth 1Gbit."
            )
        if not 0 < server_share <= 1:
            raise ProfileError(f"the share of the server must be above 0 and at most 1, got {server_share}.")
        columns = tuple(column for cut in profile.cuts for column in _columns(cut))
        costs = np.array(
            [
                [cut.server_seconds / server_share for cut in columns],
                [8 * cut.out_bytes / profile.link.bandwidth_bits_per_s for cut in columns],
                [cut.client_seconds for cut in columns],
            ],
            dtype=np.float64,
        )
        return cls(profile, columns, costs, profile.link.latency_seconds)

    @property
    def names(self) -> list[str]:
        """Of the columns' cuts."""
        return [cut.name for cut in self.columns]

    @property
    def samples(self) -> int:
        """Samples per epoch; a profile that does not say counts as one sample of an endless epoch."""
        return self.profile.samples or 1

    @property
    def first_samples(self) -> int:
        """Samples that pass through the resources one after the other, per epoch."""
        return min(FIRST_SAMPLES, math.ceil(self.profile.samples / FIRST_PART), self.profile.batch_size)

    def busy_seconds(self, shares: np.ndarray) -> np.ndarray:
        """Per resource, its seconds per sample under this mix (shares per column, summing to 1)."""
        return self.costs @ shares

    def seconds(self, shares: np.ndarray) -> float:
        """What the whole job is predicted to take under this mix."""
        busy = self.busy_seconds(shares)
        steady = (self.samples - self.first_samples) * busy.max()
        start = self.first_samples * busy.sum() + (self.latency_seconds if self.first_samples else 0.0)
        return self.over_epochs(steady + start, busy)

    def over_epochs(self, first_seconds: float, busy: np.ndarray) -> float:
        """All epochs, of which the first takes `first_seconds`: later ones find a part of the samples kept.

        Kept samples occupy the client, for the head; the others all resources, as in the first epoch. `busy` as above.
        """
        later, profile = self.profile.epochs - 1, self.profile
        if not profile.kept_share:
            return float(first_seconds * (1 + later))
        kept = profile.kept_share * self.samples * profile.head_seconds
        rest = (1 - profile.kept_share) * first_seconds
        idle = (1 - profile.kept_share) * self.samples * max(0.0, float(busy.max() - busy[-1]))
        return float(first_seconds + later * (rest + max(0.0, kept - idle)))

    def only(self, name: str) -> np.ndarray:
        """The mix in which every sample takes one cut, in the way that is fastest."""
        self.profile.cut(name)  # or ProfileError
        ways = [self.unit(index) for index, cut in enumerate(self.columns) if cut.name == name]
        return min(ways, key=self.seconds)

    def unit(self, column: int) -> np.ndarray:
        """The mix in which every sample takes one column."""
        shares = np.zeros(len(self.columns))
        shares[column] = 1.0
        return shares

    def misfits(self) -> Mapping[str, str]:
        """Cut -> why it does not fit in memory. The server may batch by one; the client holds a training batch."""
        reasons: dict[str, str] = {}
        profile = self.profile
        tiers = (
            ("the storage server", INPUT, 1, profile.server_memory_bytes, "server_bytes_per_sample"),
            ("the client", OUTPUT, profile.batch_size, profile.client_memory_bytes, "client_bytes_per_sample"),
        )
        for tier, idle_cut, batch, budget, attribute in tiers:
            for cut in profile.cuts:
                needed = profile.weight_bytes + batch * getattr(cut, attribute)
                if budget is not None and cut.name != idle_cut and needed > budget:
                    reasons[cut.name] = f"{tier} would need {needed} bytes for a batch of {batch} and has {budget}"
        order = [cut.name for cut in profile.cuts]  # a cut may have several columns
        for name in order[order.index(profile.server_fits_to) + 1 :]:
            reasons.setdefault(name, f"the storage server has memory for cuts up to {profile.server_fits_to} only")
        return reasons


def _columns(cut: CutCost) -> list[CutCost]:
    """The cut once per way that is not worse in everything than another; the first of equals."""
    figures = [(way.out_bytes, way.server_seconds, way.client_seconds) for way in cut.wire]
    return [
        replace(cut, out_bytes=size, server_seconds=server, client_seconds=client, wire=(cut.wire[index],))
        for index, (size, server, client) in enumerate(figures)
        if not any(
            all(theirs <= mine for theirs, mine in zip(other, figures[index], strict=True))
            and (other != figures[index] or position < index)
            for position, other in enumerate(figures)
            if position != index
        )
    ] or [cut]
