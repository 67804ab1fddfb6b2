"""Chooses the cut and the length of each span when it is begun, by the plan of that moment and what is under way."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from compute_client.spans import LEAST_SPAN, Span, first_of
from hapi.cancel import Cancel
from hapi.plan import OUTPUT, Plan
from profiler.pipeline import WORTH

LAST_PART = 0.5
"""Of what a cut is still to be given, the most that a span takes: towards the end they get shorter, so that no cut is
busy long after the others."""
ABOUT_FIRST = 1.5
"""Cuts whose spans would be done within so many times the shortest time count as equal: some have a longer way."""
AHEAD_SECONDS = 1.0
"""Work under way with which a cut gets no more, unless it is one span: what is not begun can still go where it is done
first."""
MOST_WAY_SECONDS, WAY_WEIGHT = 2.0, 0.5
"""The most that the way to a cut and back counts, which is on top of that, and the weight of the last span in it."""
SPAN_PART, LEAST_SECONDS = 0.5, 0.15
"""Of the work with which a cut has enough, the most of one span; and the seconds of the first and the last ones: a few
samples of a network that takes long for each are many seconds. The first are short, so that nobody waits long for
something to do."""
MOST_DOUBLINGS = 16
UNTOLD_SECONDS = 0.01
"""Per sample, of a plan that does not predict any."""
LATE = 2.0
"""A span is late that takes so many times as long as its cut had work for when it was begun, or AHEAD_SECONDS."""


class Need(NamedTuple):
    """What a sample of a cut takes of the server's time and of the link's, seconds."""

    server: float
    link: float


class Dealing:
    """Deals the samples of one pipeline. Not thread-safe but for `consider`: the pipeline's lock guards the rest.

    A cut with a share s takes s of the samples that are finished in any time: its next sample is done seconds / s after
    the last one, where the plan has `seconds` for each of all samples. So there is a moment at which all cuts can be
    done with all samples that are left, each with its part. The next span goes where it would be done about first, if
    it would be by that moment: so each cut has work under way at any time, and with it server, link and client, and one
    that is faster or slower than the plan says is given more or less at once, before anything was measured. Where that
    says little, the cut that is furthest behind its share is next. A cut has enough to do with AHEAD_SECONDS of work,
    with up to twice as much where it keeps both the server and the link busy, and, where the link is not what it mostly
    needs, with what it does while a request and its answer are on their way.
    When it has, one that has nothing at all is next, and if there is none, nothing is begun.
    """

    def __init__(
        self,
        current: Callable[[], Plan],
        consider: Callable[[Cancel], object],
        default: tuple[str, str],
        sizes: Callable[[Plan], Mapping[str, int]],
        seconds: Callable[[Plan], float | None],
        needs: Callable[[Plan], Mapping[str, Need]] = lambda _: {},
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`current` tells the plan, `consider` may change it; `default` is how features travel if it does not say,
        `sizes` are the most samples in a span of each of its cuts, `seconds` what it predicts for each sample,
        `needs` what a sample of each cut takes, where that is known."""
        self._current, self._consider, self._default = current, consider, default
        self._sizes_of, self._seconds_of, self._needs_of, self._clock = sizes, seconds, needs, clock
        self._plan: Plan | None = None
        self._ways: dict[str, tuple[str, str]] = {}
        self._seconds: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self._needs: dict[str, Need] = {}
        self._heavy = frozenset[str]()
        self._dealt: Counter[str] = Counter()
        self._spans: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._begun: dict[int, Span] = {}
        self._due: dict[int, float] = {}
        self._way_seconds: dict[str, float] = {}

    def consider(self, cancel: Cancel) -> None:
        """Called before a span is begun, on a thread that may take its time, unless and until cancelled."""
        self._consider(cancel)

    def next(self, waiting: Sequence[Span]) -> Span | None:
        """The span that would be begun now, of the first samples that wait; None if the cuts have enough to do."""
        self._follow()
        busy = {cut: self._under_way[cut] * seconds for cut, seconds in self._seconds.items()}
        end = together(((busy[cut], seconds) for cut, seconds in self._seconds.items()), sum(map(len, waiting)))
        lengths = {cut: self._length(cut, end - busy[cut]) for cut in busy}
        done = {cut: busy[cut] + lengths[cut] * self._seconds[cut] for cut in busy if not self._has_its_share(cut)}
        first = min(done.values())
        soon = (cut for cut in done if done[cut] <= max(first, min(ABOUT_FIRST * first, end)))
        cut = min(soon, key=lambda cut: (self._dealt[cut] + lengths[cut]) * self._seconds[cut])
        if busy[cut] > self._enough(cut):
            idle = [cut for cut in done if not self._under_way[cut] and done[cut] <= end]
            if not idle:
                return None
            cut = min(idle, key=done.__getitem__)
        return replace(first_of(waiting, lengths[cut]), cut=cut, way=self._ways[cut])

    def begun(self, span: Span) -> None:
        """The span is begun, as it was answered."""
        self._dealt[span.cut] += len(span)
        self._spans[span.cut] += 1
        self._under_way[span.cut] += len(span)
        self._begun[span.number] = span
        if span.cut in self._seconds:
            work = self._under_way[span.cut] * self._seconds[span.cut]
            self._due[span.number] = self._clock() + LATE * max(AHEAD_SECONDS, work)

    def arrived(self, span: Span, way_seconds: float = 0.0) -> None:
        """A span that was begun is here, after so long on its way. Its cut has no more to do with it if nothing is left
        to compute: it only waits for the client, which may be busy with others."""
        if span.cut in self._needs and span.cut not in self._heavy:
            own = self._under_way[span.cut] * self._needs[span.cut].link
            known = self._way_seconds.get(span.cut, 0.0)
            longer = min(max(way_seconds - own, 0.0), MOST_WAY_SECONDS)
            self._way_seconds[span.cut] = known + WAY_WEIGHT * (longer - known)
        if span.cut == OUTPUT:
            self.ended(span)

    def ended(self, span: Span) -> None:
        """A span that was begun is finished, or has failed."""
        begun = self._begun.pop(span.number, None)  # it may have taken another way than it was to
        if begun is not None:
            self._under_way[begun.cut] -= len(begun)
            self._due.pop(begun.number, None)

    def _length(self, cut: str, left: float) -> int:
        """Samples of its next span, while it is to be given work for so many seconds until the end."""
        seconds, least = self._seconds[cut], self._least(cut)
        most = min(self._sizes[cut], max(least, int(SPAN_PART * self._work(cut) / seconds)))
        beginning = least << min(self._spans[cut], MOST_DOUBLINGS)
        return min(most, beginning, max(least, math.ceil(LAST_PART * left / seconds)))

    def _least(self, cut: str) -> int:
        """Samples of its shortest span."""
        return min(LEAST_SPAN, max(1, round(LEAST_SECONDS / self._seconds[cut])))

    def _enough(self, cut: str) -> float:
        """Seconds of work under way with which it gets no more."""
        return max(self._work(cut), self._least(cut) * self._seconds[cut]) + self._way_seconds.get(cut, 0.0)

    def _work(self, cut: str) -> float:
        """Of those, without what the way adds: twice AHEAD_SECONDS where it keeps both server and link busy."""
        return AHEAD_SECONDS * min(max(1.0, sum(self._needs.get(cut, ())) / self._seconds[cut]), 2.0)

    def _has_its_share(self, cut: str) -> bool:
        """Whether it takes much of the link and is ahead of its share, while the others are in time."""
        if cut not in self._heavy or self._dealt[cut] <= self._shares[cut] * self._dealt.total():
            return False
        now = self._clock()
        return not any(due < now for number, due in self._due.items() if self._begun[number].cut not in self._heavy)

    def _follow(self) -> None:
        """Takes over a plan that is new."""
        plan = self._current()
        if plan is self._plan:
            return
        codec, compression = self._default
        self._plan, self._sizes = plan, dict(self._sizes_of(plan))
        self._ways = {share.name: (share.codec or codec, share.compression or compression) for share in plan.cuts}
        total = sum(share.share for share in plan.cuts)
        each = self._seconds_of(plan) or UNTOLD_SECONDS
        self._shares = {share.name: share.share / total for share in plan.cuts if share.share > 0}
        self._seconds = {name: each / share for name, share in self._shares.items()}
        needs = self._needs = dict(self._needs_of(plan))
        self._heavy = frozenset(name for name in self._shares if name in needs and needs[name].link >= WORTH * each)
        self._dealt.clear()


def together(busy: Iterable[tuple[float, float]], samples: int) -> float:
    """The moment at which so many samples are done, if all end then: by workers that are (busy until, seconds each)."""
    pace, moment, left = 0.0, 0.0, float(samples)
    for until, seconds in sorted(busy):
        if pace and left <= pace * (until - moment):
            break
        left -= pace * (until - moment)
        moment = until
        pace += 1 / seconds
    return moment + left / pace
