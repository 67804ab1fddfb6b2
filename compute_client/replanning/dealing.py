"""Chooses the cut and the length of each span when it is begun, by the plan of that moment and what is under way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compute_client.spans import LEAST_SPAN, Span, first_of
from hapi.plan import Plan

LAST_PART = 0.5
"""Of what a cut is still to be given, the most that a span takes: towards the end they get shorter, so that no cut is
busy long after the others."""
ABOUT_FIRST = 1.5
"""Cuts whose spans would be done within so many times the shortest time count as equal: some have a longer way."""


class Dealing:
    """Deals the samples of one pipeline. Not thread-safe but for `consider`: the pipeline's lock guards the rest.

    A cut with a share s takes s of the samples that are finished in any time, so k samples on its way are done when
    k / s are done of all. The next span goes where it would be done about first by that rule: so each cut has work
    under way at any time, and with it server, link and client, and one that is faster or slower than the plan says is
    given more or less at once, before anything was measured. Where that says little, and all would be done before the
    last sample is, the cut that is furthest behind its share is next. One with so small a share that it would never be
    first has its turn when it is behind by a span.
    """

    def __init__(
        self,
        current: Callable[[], Plan],
        consider: Callable[[], object],
        default: tuple[str, str],
        sizes: Callable[[Plan], Mapping[str, int]],
    ) -> None:
        """`current` tells the plan, `consider` may change it; `default` is how features travel if it does not say, and
        `sizes` are the most samples in a span of each of its cuts."""
        self._current, self._consider, self._default, self._sizes_of = current, consider, default, sizes
        self._plan: Plan | None = None
        self._ways: dict[str, tuple[str, str]] = {}
        self._shares: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self._dealt: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._begun: dict[int, Span] = {}

    def consider(self) -> None:
        """Called before a span is begun, on a thread that may take its time."""
        self._consider()

    def next(self, waiting: Sequence[Span]) -> Span:
        """The span that would be begun now, of the first samples that wait."""
        self._follow()
        left = self._under_way.total() + sum(map(len, waiting))
        lengths = {cut: self._length(cut, left) for cut in self._shares}
        name = next((cut for cut in self._shares if self._is_owed(cut, lengths[cut], left)), None)
        if name is None:
            done = {cut: (self._under_way[cut] + lengths[cut]) / share for cut, share in self._shares.items()}
            first = min(done.values())
            soon = (cut for cut in done if done[cut] <= max(first, min(ABOUT_FIRST * first, left)))
            name = min(soon, key=lambda cut: (self._dealt[cut] + lengths[cut]) / self._shares[cut])
        return replace(first_of(waiting, lengths[name]), cut=name, way=self._ways[name])

    def begun(self, span: Span) -> None:
        """The span is begun, as it was answered."""
        self._dealt[span.cut] += len(span)
        self._under_way[span.cut] += len(span)
        self._begun[span.number] = span

    def ended(self, span: Span) -> None:
        """A span that was begun is finished, or has failed."""
        span = self._begun.pop(span.number)  # it may have taken another way than it was to
        self._under_way[span.cut] -= len(span)

    def _length(self, cut: str, left: int) -> int:
        """Samples of its next span, while so many of all cuts are not finished."""
        part = LAST_PART * (self._shares[cut] * left - self._under_way[cut])
        return min(self._sizes[cut], max(LEAST_SPAN, math.ceil(part)))

    def _is_owed(self, cut: str, length: int, left: int) -> bool:
        """Whether nothing is on its way to a cut that is a span behind its share, and would take part until the end."""
        share = self._shares[cut]
        behind = share * self._dealt.total() - self._dealt[cut]
        return not self._under_way[cut] and behind >= length and share * left >= length

    def _follow(self) -> None:
        """Takes over a plan that is new."""
        plan = self._current()
        if plan is self._plan:
            return
        codec, compression = self._default
        self._plan, self._sizes = plan, dict(self._sizes_of(plan))
        self._ways = {share.name: (share.codec or codec, share.compression or compression) for share in plan.cuts}
        self._shares = {share.name: share.share for share in plan.cuts if share.share > 0}
        self._dealt.clear()
