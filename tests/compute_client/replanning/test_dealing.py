"""Spans get the cut that they were cut for, others when the plan changes, and near the end one that is done in time."""

from __future__ import annotations

import heapq

import pytest

from compute_client.replanning.dealing import Dealing
from compute_client.spans import Dealer, Span, SpanCutter, span_size
from hapi.plan import Plan, Share

DEFAULT = ("float32", "none")
IN_FLIGHT = 4


def plan_of(**shares: float) -> Plan:
    return Plan("mix", tuple(Share(name, share) for name, share in shares.items()), None, None)


def dealing_of(plan: Plan) -> Dealing:
    return Dealing(lambda: plan, lambda: None, DEFAULT)


def spans_of(plan: Plan, samples: int) -> list[Span]:
    """As a loader cuts them."""
    sizes = {
        cut.name: span_size(samples, 1.0, limit_bytes=10**9, in_flight=IN_FLIGHT, share=cut.share) for cut in plan.cuts
    }
    cutter = SpanCutter(Dealer(plan.cuts, sizes), epoch=0)
    spans = [span for index in range(samples) if (span := cutter.add(index)) is not None]
    last = cutter.flush()
    return spans + ([last] if last is not None else [])


def epoch_seconds(plan: Plan, samples: int) -> float:
    """Of ways that work side by side, each as fast as its share says: together one sample per second."""
    dealing, waiting = dealing_of(plan), spans_of(plan, samples)
    shares = {cut.name: cut.share for cut in plan.cuts}
    now, free, ends, under_way = 0.0, dict.fromkeys(shares, 0.0), list[tuple[float, int, Span]](), 0
    while waiting or ends:
        while waiting and under_way < IN_FLIGHT:
            span = dealing.assign(waiting[0], sum(map(len, waiting)))
            waiting.pop(0)
            dealing.begun(span)
            under_way += 1
            free[span.cut] = max(now, free[span.cut]) + len(span) / shares[span.cut]
            heapq.heappush(ends, (free[span.cut], span.number, span))
        now, _, span = heapq.heappop(ends)
        dealing.ended(span)
        under_way -= 1
    return now


def test_spans_keep_the_cut_that_they_were_cut_for() -> None:
    plan = plan_of(input=0.3, output=0.7)
    dealing, spans = dealing_of(plan), spans_of(plan, 300)
    for place, span in enumerate(spans[:8]):
        found = dealing.assign(span, sum(map(len, spans[place:])))
        assert (found.cut, found.way) == (span.cut, DEFAULT)
        dealing.begun(found)
        dealing.ended(found)


def test_after_a_change_cuts_are_dealt_by_the_new_shares() -> None:
    plans = [plan_of(input=0.5, output=0.5), plan_of(layer=1.0)]
    dealing = Dealing(lambda: plans[0], lambda: None, DEFAULT)
    spans = spans_of(plans[0], 200)
    assert dealing.assign(spans[0], 200).cut in ("input", "output")
    del plans[0]
    assert {dealing.assign(span, 100).cut for span in spans} == {"layer"}


def test_the_last_spans_take_the_way_that_is_free_first() -> None:
    dealing = dealing_of(plan_of(input=0.1, output=0.9))
    slow = Span(0, "input", 0, tuple(range(8)))
    assert dealing.assign(slow, 1000).cut == "input"
    assert dealing.assign(slow, 8).cut == "output"
    busy = Span(1, "output", 0, tuple(range(90)))
    dealing.begun(dealing.assign(busy, 1000))
    assert dealing.assign(slow, 8).cut == "input"


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("samples", [64, 256, 3000])
def test_no_way_works_on_long_after_the_others(share: float, samples: int) -> None:
    seconds = epoch_seconds(plan_of(input=share, output=1 - share), samples)
    assert seconds <= 1.12 * samples + 2
