"""Spans: the samples of one request. Batches are joined into spans, and spans are dealt to the cuts of the plan."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hapi.errors import InputError
from hapi.plan import Share
from hapi.wire.protocol import MAX_SPAN


@dataclass(frozen=True)
class Span:
    """Consecutive samples of an epoch's order that take the same cut; no index appears twice.

    `number` is the place of its first sample among all that come in spans: the next one's is larger by its length.
    """

    number: int
    cut: str
    epoch: int
    indices: tuple[int, ...]
    way: tuple[str, str] | None = None
    """Codec and compression of its features, where the job's plan does not say once and for all."""

    def __len__(self) -> int:
        return len(self.indices)


class Dealer:
    """Deals spans to cuts so that after every span each cut is as near as possible to its share of the samples.

    Deterministic: the cut that is furthest behind its share is next; the plan's order breaks ties.
    """

    def __init__(self, shares: Sequence[Share], sizes: Mapping[str, int]) -> None:
        total = sum(share.share for share in shares)
        if not shares or total <= 0 or any(share.share < 0 for share in shares):
            raise InputError("plan: its cuts need shares of zero or more that are not all zero.")
        self._shares = {share.name: share.share / total for share in shares if share.share > 0}
        self._sizes = {name: min(max(1, sizes[name]), MAX_SPAN) for name in self._shares}
        self._dealt = dict.fromkeys(self._shares, 0)

    def next(self) -> tuple[str, int]:
        """The next span's cut and how many samples it may have."""
        name = self._furthest_behind(self._sizes)
        return name, self._sizes[name]

    def dealt(self, cut: str, samples: int) -> None:
        self._dealt[cut] += samples

    def _furthest_behind(self, sizes: Mapping[str, int]) -> str:
        total = sum(self._dealt.values())

        def behind(name: str) -> float:
            return self._shares[name] * (total + sizes[name]) - self._dealt[name]

        return max(self._shares, key=behind)


class SpanCutter:
    """Cuts a stream of an epoch's sample indices into spans, of the sizes and cuts that a dealer gives.

    The first are shorter (FIRST_SPAN, GROWTH): requests that are under way share the link, and all of the same length
    would arrive at about the same time, before which there is nothing to do here.
    """

    def __init__(self, dealer: Dealer, epoch: int) -> None:
        self._dealer, self._epoch = dealer, epoch
        self._number = 0
        self._begin()
        self._current: dict[int, None] = {}

    def add(self, index: int) -> Span | None:
        """Takes the next index; answers the span that is whole without it, if one is.

        A sampler that draws with replacement may repeat an index; a span ends before a repetition.
        """
        done = self.flush() if len(self._current) == self._size or index in self._current else None
        self._current[index] = None
        return done

    def flush(self) -> Span | None:
        """The span of what was taken since the last one; None if that is nothing."""
        if not self._current:
            return None
        span = Span(self._number, self._cut, self._epoch, tuple(self._current))
        self._dealer.dealt(self._cut, len(span))
        self._number += len(span)
        self._begin()
        self._current = {}
        return span

    def _begin(self) -> None:
        self._cut, size = self._dealer.next()
        self._size = min(size, max(FIRST_SPAN, self._number // GROWTH))


def first_of(spans: Iterable[Span], most: int) -> Span:
    """The first samples of spans that follow one another, `most` of them, as one span with the cut of the first; fewer
    where there are no more, or before an index that comes again."""
    whole: Span | None = None
    taken: dict[int, None] = {}
    for span in spans:
        whole = whole or span
        for index in span.indices:
            if index in taken or len(taken) == most:
                return replace(whole, indices=tuple(taken))
            taken[index] = None
    assert whole is not None
    return replace(whole, indices=tuple(taken))


def take_first(spans: deque[Span], count: int) -> None:
    """Takes so many samples away from the beginning."""
    while count:
        span = spans.popleft()
        if len(span) > count:
            spans.appendleft(replace(span, number=span.number + count, indices=span.indices[count:]))
            return
        count -= len(span)


def span_size(
    samples: int,
    bytes_per_sample: float,
    *,
    limit_bytes: int,
    in_flight: int,
    share: float = 1.0,
    per_second: float = math.inf,
) -> int:
    """Samples per span: many enough spans to spread over cuts and requests, few enough to pay a round trip each.

    At most `limit_bytes` of data, and about a quarter of a second's work where all cuts together do so many samples
    `per_second`; a small dataset still gives each of the requests in flight about four spans. A cut that takes only a
    `share` of the samples has smaller ones in proportion, as each of them takes it longer.
    """
    by_bytes = int(limit_bytes // max(bytes_per_sample, 1.0))
    spans = SPANS_EACH if share >= 1 else SPANS_EACH // 2  # or so little would be under way that servers are idle
    most = min(samples / (spans * in_flight), MAX_DEFAULT_SPAN, max(SPAN_SECONDS * per_second, MIN_SPAN))
    least = max(LEAST_SPAN, math.ceil(share * MIN_SPAN))
    return max(1, min(by_bytes, max(math.ceil(share * most), least)))


FIRST_SPAN, GROWTH = 1, 8
"""Samples of the first spans; a later one has at most a GROWTH-th of those before it: what is under way in six requests
is then no more than about what has arrived, in whatever time that was."""
SPANS_EACH = 4
"""Of a small dataset, for each request in flight, where all take the same cut."""
MIN_SPAN = 8
LEAST_SPAN = 4
"""Of a cut with a small share."""
MAX_DEFAULT_SPAN = 64
SPAN_SECONDS = 0.25
"""Spans that are under way together arrive together: of long ones the client has nothing to do, and then too much. When
the link drops to a tenth they take ten times as long, and all that comes after them waits."""
