"""Streams of samples, each over a cut or a mix of cuts, and what was seen of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Shares = tuple[tuple[str, float], ...]
Watch = Callable[[Shares, float, float | None], Mapping[str, Any]]
"""(shares, part of the usual time, pace at which to give up: None for never) -> the client's answer."""


@dataclass(frozen=True)
class Stream:
    """A cut, or a mix of several.

    Attributes:
        shares: cut -> part of the samples.
        predicted: seconds per sample by the profile.
        floor: seconds per sample that the link alone needs for its bytes.
        is_wanted: a policy chose it.
        is_promised: one of those policies did of which it was promised that they choose well.
    """

    shares: Shares
    predicted: float
    floor: float = 0.0
    is_wanted: bool = False
    is_promised: bool = False

    @property
    def is_cut(self) -> bool:
        return len(self.shares) == 1


@dataclass(frozen=True)
class CutPace:
    """A stream at a bandwidth, per sample.

    Attributes:
        seconds: measured, the mean of all readings; if `is_bound`, it is at least so slow.
        is_carried: measured over a faster link, not over this one.
        is_short: its only reading was a short one.
        why: what bounds it, or where it was measured, in words, where it was not watched to the end.
        readings: the answers of the client.
    """

    seconds: float
    is_bound: bool = False
    is_carried: bool = False
    is_short: bool = False
    why: str = ""
    readings: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def paces(self) -> list[float]:
        """Of the readings that were not given up."""
        return [reading["seconds_per_sample"] for reading in self.readings if not reading["is_bound"]]

    def with_reading(self, reading: Mapping[str, Any]) -> CutPace:
        """With one more; those that were short, given up or made over another link do not count beside it."""
        is_first = self.is_short or self.is_carried or self.is_bound
        readings = (reading,) if is_first else (*self.readings, reading)
        return CutPace(fmean(one["seconds_per_sample"] for one in readings), readings=readings)
