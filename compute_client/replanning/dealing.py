"""Chooses the cut of each span when it is begun, by the plan of that moment and what is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from compute_client.spans import Dealer, Span
from hapi.plan import Plan


class Dealing:
    """Deals the spans of one pipeline. Not thread-safe but for `consider`: the pipeline's lock guards the rest.

    A span keeps the cut that it was cut for, as its size is meant for that, unless the plan has changed. Near the end
    it takes another way if its own would still be busy when everything else is done: a cut with a share s takes s of
    the samples that are finished in any time, so k samples on its way are done when k / s are done of all.
    """

    def __init__(self, current: Callable[[], Plan], consider: Callable[[], object], default: tuple[str, str]) -> None:
        """`current` tells the plan, `consider` may change it; `default` is how features travel if it does not say."""
        self._current, self._consider, self._default = current, consider, default
        self._first: Plan | None = None
        self._plan: Plan | None = None
        self._ways: dict[str, tuple[str, str]] = {}
        self._shares: dict[str, float] = {}
        self._dealt: Dealer | None = None
        self._under_way: Counter[str] = Counter()

    def consider(self) -> None:
        """Called before a span is begun, on a thread that may take its time."""
        self._consider()

    def assign(self, span: Span, left: int) -> Span:
        """The span with the cut that it would have if it were begun now; `left` samples wait, its own among them."""
        dealer = self._dealer()
        is_meant = self._plan is self._first and span.cut in self._shares
        name = span.cut if is_meant else dealer.for_samples(len(span))
        if self._done_after(name, len(span)) > self._under_way.total() + left:
            name = min(self._shares, key=lambda cut: self._done_after(cut, len(span)))
        return replace(span, cut=name, way=self._ways[name])

    def begun(self, span: Span) -> None:
        """The span is begun, as it was assigned."""
        self._dealer().dealt(span.cut, len(span))
        self._under_way[span.cut] += len(span)

    def ended(self, span: Span) -> None:
        """A span that was begun is finished, or has failed."""
        self._under_way[span.cut] -= len(span)

    def _done_after(self, cut: str, samples: int) -> float:
        """Samples of all cuts that are finished while a span of so many, begun now, is on its way."""
        return (self._under_way[cut] + samples) / self._shares[cut]

    def _dealer(self) -> Dealer:
        plan = self._current()
        if self._dealt is None or plan is not self._plan:
            codec, compression = self._default
            self._first = self._first or plan
            self._ways = {share.name: (share.codec or codec, share.compression or compression) for share in plan.cuts}
            self._shares = {share.name: share.share for share in plan.cuts if share.share > 0}
            self._dealt, self._plan = Dealer(plan.cuts, dict.fromkeys(self._ways, 1)), plan
        return self._dealt
