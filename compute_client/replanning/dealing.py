"""Chooses the cut of each span when it is begun, by the plan of that moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compute_client.spans import Dealer, Span
from hapi.plan import Plan


class Dealing:
    """Deals the spans of one pipeline. Not thread-safe but for `consider`: the pipeline's lock guards the rest."""

    def __init__(self, current: Callable[[], Plan], consider: Callable[[], object], default: tuple[str, str]) -> None:
        """`current` tells the plan, `consider` may change it; `default` is how features travel if it does not say."""
        self._current, self._consider, self._default = current, consider, default
        self._plan: Plan | None = None
        self._ways: dict[str, tuple[str, str]] = {}
        self._dealt: Dealer | None = None

    def consider(self) -> None:
        """Called before a span is begun, on a thread that may take its time."""
        self._consider()

    def assign(self, span: Span) -> Span:
        """The span with the cut that it would have if it were begun now."""
        name = self._dealer().for_samples(len(span))
        return replace(span, cut=name, way=self._ways[name])

    def begun(self, span: Span) -> None:
        """The span is begun, as it was assigned."""
        self._dealer().dealt(span.cut, len(span))

    def _dealer(self) -> Dealer:
        plan = self._current()
        if self._dealt is None or plan is not self._plan:
            codec, compression = self._default
            self._ways = {share.name: (share.codec or codec, share.compression or compression) for share in plan.cuts}
            self._dealt, self._plan = Dealer(plan.cuts, dict.fromkeys(self._ways, 1)), plan
        return self._dealt
