"""Every cut has its share under way, whatever the plan; the last spans end together; a cut that is slow gets less."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping

import pytest

from compute_client.replanning.dealing import Dealing
from compute_client.spans import Dealer, Span, SpanCutter, span_size, take_first
from hapi.plan import Plan, Share

DEFAULT = ("float32", "none")
IN_FLIGHT = 4


def plan_of(**shares: float) -> Plan:
    return Plan("mix", tuple(Share(name, share) for name, share in shares.items()), None, None)


def sizes_of(plan: Plan, samples: int) -> dict[str, int]:
    """As a loader has them."""
    return {
        cut.name: span_size(samples, 1.0, limit_bytes=10**9, in_flight=IN_FLIGHT, share=cut.share) for cut in plan.cuts
    }


def dealing_of(plan: Plan, samples: int) -> Dealing:
    return Dealing(lambda: plan, lambda: None, DEFAULT, lambda plan: sizes_of(plan, samples))


def spans_of(plan: Plan, samples: int) -> deque[Span]:
    cutter = SpanCutter(Dealer(plan.cuts, sizes_of(plan, samples)), epoch=0)
    spans = [span for index in range(samples) if (span := cutter.add(index)) is not None]
    last = cutter.flush()
    return deque(spans + ([last] if last is not None else []))


def epoch(plan: Plan, samples: int, paces: Mapping[str, float]) -> tuple[float, Counter[str]]:
    """Seconds of an epoch on ways that work side by side, each with so many samples per second; and what they did."""
    dealing, waiting, done = dealing_of(plan, samples), spans_of(plan, samples), Counter[str]()
    now, free, ends, under_way = 0.0, dict.fromkeys(paces, 0.0), list[tuple[float, int, Span]](), 0
    while waiting or ends:
        while waiting and under_way < IN_FLIGHT:
            span = dealing.next(waiting)
            take_first(waiting, len(span))
            dealing.begun(span)
            done[span.cut] += len(span)
            under_way += 1
            free[span.cut] = max(now, free[span.cut]) + len(span) / paces[span.cut]
            heapq.heappush(ends, (free[span.cut], span.number, span))
        now, _, span = heapq.heappop(ends)
        dealing.ended(span)
        under_way -= 1
    assert done.total() == samples
    return now, done


def test_every_cut_has_its_share_under_way_from_the_beginning() -> None:
    plan = plan_of(input=0.1, output=0.9)
    dealing, waiting = dealing_of(plan, 512), spans_of(plan, 512)
    begun = Counter[str]()
    for _ in range(IN_FLIGHT):
        span = dealing.next(waiting)
        assert span == dealing.next(waiting)
        assert span.way == DEFAULT
        take_first(waiting, len(span))
        dealing.begun(span)
        begun[span.cut] += 1
    assert begun == {"input": 2, "output": 2}


def test_after_a_change_cuts_are_dealt_by_the_new_shares() -> None:
    plans = [plan_of(input=0.5, output=0.5), plan_of(layer=1.0)]
    dealing = Dealing(lambda: plans[0], lambda: None, DEFAULT, lambda plan: sizes_of(plan, 200))
    waiting = spans_of(plans[0], 200)
    before = dealing.next(waiting)
    assert before.cut in ("input", "output")
    take_first(waiting, len(before))
    dealing.begun(before)
    del plans[0]
    after = dealing.next(waiting)
    assert (after.cut, len(after)) == ("layer", sizes_of(plans[0], 200)["layer"])
    dealing.begun(after)
    dealing.ended(before)
    dealing.ended(after)


def test_a_span_that_took_another_way_is_counted_where_it_was_begun() -> None:
    dealing, waiting = dealing_of(plan_of(layer=1.0), 64), spans_of(plan_of(layer=1.0), 64)
    span = dealing.next(waiting)
    dealing.begun(span)
    dealing.ended(Span(span.number, "input", 0, span.indices))
    assert dealing.next(waiting) == span


def test_a_span_ends_before_an_index_that_comes_again() -> None:
    dealing = dealing_of(plan_of(layer=1.0), 1000)
    waiting = [Span(0, "", 0, (1, 2, 3)), Span(3, "", 0, (4, 2, 5)), Span(6, "", 0, tuple(range(10, 60)))]
    assert dealing.next(waiting).indices == (1, 2, 3, 4)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("samples", [64, 256, 3000])
def test_no_way_works_on_long_after_the_others(share: float, samples: int) -> None:
    seconds, _ = epoch(plan_of(input=share, output=1 - share), samples, {"input": share, "output": 1 - share})
    assert seconds <= 1.05 * samples + 6


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_way_that_is_faster_or_slower_than_planned_gets_more_or_less(share: float, factor: float) -> None:
    paces = {"input": factor * share, "output": 1 - share}
    seconds, done = epoch(plan_of(input=share, output=1 - share), 2000, paces)
    best = 2000 / sum(paces.values())
    assert seconds <= 1.1 * best + 30
    assert done["input"] == pytest.approx(paces["input"] * best, rel=0.1, abs=20)


def test_a_cut_with_a_tiny_share_has_its_turn() -> None:
    plan = plan_of(input=0.004, output=0.996)
    _, done = epoch(plan, 3000, {"input": 0.004, "output": 0.996})
    assert 6 <= done["input"] <= 24
