"""What a plan is made from, as it is now: the link's bandwidth and the speed of both tiers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hapi.plan import CutCost, Link, Profile, WireCost
from hapi.units import format_bandwidth

NOTICEABLE = 1.2
"""Rates that differ by less are the same rates."""
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Rates:
    """Measured while a job runs.

    Attributes:
        bits_per_s: of the link.
        server_scale, client_scale: seconds per sample, relative to the profile's.
        server_share: the part of the server's time that this job can have, 0 to 1.
    """

    bits_per_s: float
    server_scale: float = 1.0
    server_share: float = 1.0
    client_scale: float = 1.0

    def applied(self, profile: Profile) -> Profile:
        """The profile with these rates; the share is the planner's argument."""
        assert profile.link is not None
        server, client = max(self.server_scale, LEAST_SCALE), max(self.client_scale, LEAST_SCALE)
        return replace(
            profile,
            link=Link(self.bits_per_s, profile.link.latency_seconds),
            cuts=tuple(_scaled(cut, server, client) for cut in profile.cuts),
            head_seconds=profile.head_seconds * client,
        )

    def differs(self, other: Rates) -> bool:
        """Whether any of them is noticeably another."""
        return any(max(mine, theirs) > NOTICEABLE * min(mine, theirs) for mine, theirs in self._pairs(other))

    def changes(self, other: Rates) -> str:
        """What is noticeably other than it was, for people."""
        link, server, share, client = (max(pair) > NOTICEABLE * min(pair) for pair in self._pairs(other))
        said = []
        if link:
            now, before = format_bandwidth(self.bits_per_s), format_bandwidth(other.bits_per_s)
            said.append(f"the link gives {now}, {_times(self.bits_per_s, other.bits_per_s)} the {before} before")
        if server:
            said.append(
                f"the server takes {_times(self.server_scale, other.server_scale)} the time per sample that it took"
            )
        if share:
            said.append(f"{self.server_share:.0%} of the server's time is this job's, {other.server_share:.0%} before")
        if client:
            said.append(
                f"the client takes {_times(self.client_scale, other.client_scale)} the time per sample that it took"
            )
        return "; ".join(said)

    def _pairs(self, other: Rates) -> list[tuple[float, float]]:
        return [
            (self.bits_per_s, other.bits_per_s),
            (self.server_scale, other.server_scale),
            (self.server_share, other.server_share),
            (self.client_scale, other.client_scale),
        ]


def _times(now: float, before: float) -> str:
    return f"{now / max(before, 1e-12):.2g} times"


def _scaled(cut: CutCost, server: float, client: float) -> CutCost:
    return replace(
        cut,
        server_seconds=cut.server_seconds * server,
        client_seconds=cut.client_seconds * client,
        wire=tuple(_scaled_way(way, server, client) for way in cut.wire),
    )


def _scaled_way(way: WireCost, server: float, client: float) -> WireCost:
    return replace(
        way,
        server_seconds=way.server_seconds * server,
        client_seconds=way.client_seconds * client,
        encode_seconds=way.encode_seconds * server,
        decode_seconds=way.decode_seconds * client,
    )
