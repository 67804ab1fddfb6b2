"""Every cut has its share under way, whatever the plan; the last spans end together; a cut that is slow gets less."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import pytest

from compute_client.replanning.dealing import AHEAD_SECONDS, SPAN_PART, Dealing, Need, together
from compute_client.spans import Dealer, Span, SpanCutter, span_size, take_first
from hapi.plan import OUTPUT, Plan, Share

DEFAULT = ("float32", "none")
IN_FLIGHT = 4
SECONDS = 0.005
"""That a plan predicts for each sample."""


def plan_of(**shares: float) -> Plan:
    return Plan("mix", tuple(Share(name, share) for name, share in shares.items()), None, None)


def sizes_of(plan: Plan, samples: int) -> dict[str, int]:
    """As a loader has them."""
    return {
        cut.name: span_size(samples, 1.0, limit_bytes=10**9, in_flight=IN_FLIGHT, share=cut.share) for cut in plan.cuts
    }


def dealing_of(plan: Plan, samples: int, seconds: float | None = SECONDS) -> Dealing:
    return Dealing(lambda: plan, lambda: None, DEFAULT, lambda plan: sizes_of(plan, samples), lambda plan: seconds)


def spans_of(plan: Plan, samples: int) -> deque[Span]:
    cutter = SpanCutter(Dealer(plan.cuts, sizes_of(plan, samples)), epoch=0)
    spans = [span for index in range(samples) if (span := cutter.add(index)) is not None]
    last = cutter.flush()
    return deque(spans + ([last] if last is not None else []))


def begin(dealing: Dealing, waiting: deque[Span]) -> Span | None:
    """The next span, begun; None if there is none now."""
    span = dealing.next(waiting)
    assert span == dealing.next(waiting)
    if span is not None:
        take_first(waiting, len(span))
        dealing.begun(span)
    return span


def epoch(
    plan: Plan,
    samples: int,
    paces: Mapping[str, float],
    seconds: float = SECONDS,
    link_seconds: Mapping[str, float] = MappingProxyType({}),
    latency: float = 0.0,
    in_flight: int = IN_FLIGHT,
) -> tuple[float, Counter[str]]:
    """Samples' times of an epoch on ways that work side by side, each with so many samples in a time; what they did.

    A span is known to be done `latency` later."""
    now = 0.0
    dealing = Dealing(
        lambda: plan,
        lambda: None,
        DEFAULT,
        lambda plan: sizes_of(plan, samples),
        lambda plan: seconds,
        lambda plan: {cut: Need(0.0, link) for cut, link in link_seconds.items()},
        lambda: seconds * now,
    )
    waiting, done = spans_of(plan, samples), Counter[str]()
    free, ends = dict.fromkeys(paces, 0.0), list[tuple[float, int, Span]]()
    while waiting or ends:
        while waiting and len(ends) < in_flight and (span := begin(dealing, waiting)) is not None:
            done[span.cut] += len(span)
            free[span.cut] = max(now, free[span.cut]) + len(span) / paces[span.cut]
            heapq.heappush(ends, (free[span.cut] + latency, span.number, span))
        now, _, span = heapq.heappop(ends)
        dealing.ended(span)
    assert done.total() == samples
    return now, done


def test_every_cut_has_work_under_way_from_the_beginning() -> None:
    plan = plan_of(input=0.1, output=0.9)
    dealing, waiting = dealing_of(plan, 512), spans_of(plan, 512)
    begun = Counter[str]()
    for _ in range(IN_FLIGHT):
        span = begin(dealing, waiting)
        assert span is not None
        assert span.way == DEFAULT
        begun[span.cut] += 1
    assert begun == {"input": 1, "output": 3}


LENGTHS = [(0.005, [4, 8, 16, 32]), (0.05, [3, 6]), (0.2, [1, 2]), (2.0, [1, 1])]


@pytest.mark.parametrize(("seconds", "lengths"), LENGTHS)
def test_the_first_spans_are_short_and_nobody_has_much_ahead(seconds: float, lengths: list[int]) -> None:
    plan = plan_of(layer=1.0)
    dealing, waiting = dealing_of(plan, 512, seconds), spans_of(plan, 512)
    begun = [len(span) for span in iter(lambda: begin(dealing, waiting), None)]
    assert begun[: len(lengths)] == lengths
    most = max(AHEAD_SECONDS, seconds) + max(SPAN_PART * AHEAD_SECONDS, seconds)
    assert AHEAD_SECONDS < seconds * sum(begun) <= most


def test_more_is_begun_once_a_span_has_ended() -> None:
    plan = plan_of(layer=1.0)
    dealing, waiting = dealing_of(plan, 512, 1.0), spans_of(plan, 512)
    first = begin(dealing, waiting)
    assert first is not None
    assert begin(dealing, waiting) is not None
    assert dealing.next(waiting) is None
    dealing.ended(first)
    assert dealing.next(waiting) is not None


@pytest.mark.parametrize(
    ("cut", "link", "way", "more"),
    [
        ("layer", 0.1, 2.2, 1),
        ("layer", 0.1, 50.0, 1),
        ("layer", 1.0, 2.0, 0),  # on its way behind others of its own
        ("layer", 3.0, 50.0, 0),  # it takes much of the link
        ("layer", None, 50.0, 0),
    ],
)
def test_a_cut_has_more_under_way_where_the_way_is_long(cut: str, link: float | None, way: float, more: int) -> None:
    plan = plan_of(**{cut: 1.0})
    needs = {} if link is None else {cut: Need(0.0, link)}
    dealing = Dealing(
        lambda: plan, lambda: None, DEFAULT, lambda plan: sizes_of(plan, 512), lambda _: 1.0, lambda _: needs
    )
    waiting = spans_of(plan, 512)
    begun = list(iter(lambda: begin(dealing, waiting), None))
    assert {len(span) for span in begun} == {1}
    dealing.arrived(begun[0], way)
    dealing.ended(begun[0])
    assert len(list(iter(lambda: begin(dealing, waiting), None))) == 1 + more


@pytest.mark.parametrize(
    ("server", "link", "times"), [(0.1, 1.0, 1.1), (1.0, 0.0, 1.0), (0.8, 1.0, 1.8), (1.0, 1.0, 2.0), (1.0, 9.0, 2.0)]
)
def test_up_to_twice_as_much_is_under_way_where_server_and_link_are_busy(
    server: float, link: float, times: float
) -> None:
    plan, needs = plan_of(output=1.0), {"output": Need(server * SECONDS, link * SECONDS)}
    dealing = Dealing(
        lambda: plan, lambda: None, DEFAULT, lambda _: {"output": 10**6}, lambda _: SECONDS, lambda _: needs
    )
    waiting = spans_of(plan, 4096)
    begun = [len(span) for span in iter(lambda: begin(dealing, waiting), None)]
    assert times * AHEAD_SECONDS <= sum(begun) * SECONDS <= times * (1 + SPAN_PART) * AHEAD_SECONDS
    assert max(begun) * SECONDS == pytest.approx(times * SPAN_PART * AHEAD_SECONDS, rel=0.1)


def test_a_cut_that_has_nothing_to_do_begins_while_the_others_have_enough() -> None:
    plan = plan_of(input=0.1, layer=0.9)
    dealing, waiting = dealing_of(plan, 512, 1.0), spans_of(plan, 512)
    begun = [span.cut for span in iter(lambda: begin(dealing, waiting), None)]
    assert begun == ["layer", "layer", "input"]


def test_the_last_samples_are_not_begun_where_they_would_end_late() -> None:
    plan = plan_of(input=0.1, layer=0.9)
    dealing, waiting = dealing_of(plan, 5, 1.0), spans_of(plan, 5)
    assert [span.cut for span in iter(lambda: begin(dealing, waiting), None)] == ["layer", "layer"]


@pytest.mark.parametrize(("cut", "is_done"), [("layer", False), (OUTPUT, True)])
def test_what_only_waits_for_the_client_is_done(cut: str, is_done: bool) -> None:
    plan = plan_of(**{cut: 1.0})
    dealing, waiting = dealing_of(plan, 512, 1.0), spans_of(plan, 512)
    first = begin(dealing, waiting)
    assert first is not None
    assert begin(dealing, waiting) is not None
    assert begin(dealing, waiting) is None
    dealing.arrived(first)
    assert (dealing.next(waiting) is not None) is is_done
    dealing.ended(first)
    assert dealing.next(waiting) is not None


def test_after_a_change_cuts_are_dealt_by_the_new_shares() -> None:
    plans = [plan_of(input=0.5, output=0.5), plan_of(layer=1.0)]
    sizes = partial(sizes_of, samples=200)
    dealing = Dealing(lambda: plans[0], lambda: None, DEFAULT, sizes, lambda plan: SECONDS)
    waiting = spans_of(plans[0], 200)
    before = begin(dealing, waiting)
    assert before is not None
    assert before.cut in ("input", "output")
    del plans[0]
    after = begin(dealing, waiting)
    assert after is not None
    assert after.cut == "layer"
    dealing.ended(before)
    dealing.ended(after)


def test_a_span_that_took_another_way_is_counted_where_it_was_begun() -> None:
    dealing, waiting = dealing_of(plan_of(layer=1.0), 64, 1.0), spans_of(plan_of(layer=1.0), 64)
    span = dealing.next(waiting)
    assert span is not None
    dealing.begun(span)
    dealing.ended(Span(span.number, "input", 0, span.indices))
    assert dealing.next(waiting) == span


def test_a_span_ends_before_an_index_that_comes_again() -> None:
    dealing = dealing_of(plan_of(layer=1.0), 1000)
    waiting = [Span(0, "", 0, (1, 2, 3)), Span(3, "", 0, (4, 2, 5)), Span(6, "", 0, tuple(range(10, 60)))]
    span = dealing.next(waiting)
    assert span is not None
    assert span.indices == (1, 2, 3, 4)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("samples", [64, 256, 3000])
def test_no_way_works_on_long_after_the_others(share: float, samples: int) -> None:
    seconds, _ = epoch(plan_of(input=share, output=1 - share), samples, {"input": share, "output": 1 - share})
    assert seconds <= 1.05 * samples + 6


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("samples", [20, 48, 176])
def test_of_few_samples_that_take_long_none_is_left_for_one_way(share: float, samples: int) -> None:
    plan, paces = plan_of(input=share, output=1 - share), {"input": share, "output": 1 - share}
    seconds, _ = epoch(plan, samples, paces, seconds=0.1)
    assert seconds <= samples + 0.5 / share


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_way_that_is_faster_or_slower_than_planned_gets_more_or_less(share: float, factor: float) -> None:
    paces = {"input": factor * share, "output": 1 - share}
    seconds, done = epoch(plan_of(input=share, output=1 - share), 2000, paces)
    best = 2000 / sum(paces.values())
    assert seconds <= 1.1 * best + 30
    assert done["input"] == pytest.approx(paces["input"] * best, rel=0.1, abs=20)


LINK_SECONDS = {"input": 4 * SECONDS, "output": 0.1 * SECONDS}


@pytest.mark.parametrize("latency", [0.0, 0.4])
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_way_that_takes_much_of_the_link_gets_no_more_than_its_share(
    share: float, factor: float, latency: float
) -> None:
    plan, paces = plan_of(input=share, output=1 - share), {"input": factor * share, "output": 1 - share}
    seconds, done = epoch(plan, 2000, paces, link_seconds=LINK_SECONDS, latency=latency / SECONDS)
    assert seconds <= 1.05 * 2000 + 6 + 6 * latency / SECONDS  # few are in flight here
    assert done["input"] == pytest.approx(2000 * share, rel=0.05, abs=SPAN_PART * AHEAD_SECONDS / SECONDS * share + 4)


@pytest.mark.parametrize("latency", [0.2, 0.4, 0.8, 1.5])
def test_short_spans_over_a_long_way_are_not_late(latency: float) -> None:
    plan, paces = plan_of(input=0.3, output=0.7), {"input": 1.2, "output": 0.7}
    _, done = epoch(plan, 100, paces, link_seconds=LINK_SECONDS, latency=latency / SECONDS, in_flight=16)
    assert done["input"] <= 34


@pytest.mark.parametrize(("fast", "link"), [("output", 4.0), ("input", 2.0)])
def test_a_way_that_takes_little_of_it_gets_more_if_it_is_faster(fast: str, link: float) -> None:
    shares = {"input": 0.3, "output": 0.7}
    paces = {**shares, fast: 2 * shares[fast]}
    _, done = epoch(plan_of(**shares), 2000, paces, link_seconds={"input": link * SECONDS})
    assert done[fast] == pytest.approx(2000 * paces[fast] / sum(paces.values()), rel=0.05)


def test_a_way_that_takes_much_of_it_goes_on_while_another_is_late() -> None:
    paces = {"input": 0.3, "output": 0.001}
    _, done = epoch(plan_of(input=0.3, output=0.7), 4000, paces, link_seconds=LINK_SECONDS)
    assert done["input"] >= 3500


def test_a_cut_with_a_tiny_share_has_its_turn() -> None:
    plan = plan_of(input=0.004, output=0.996)
    _, done = epoch(plan, 3000, {"input": 0.004, "output": 0.996})
    assert 6 <= done["input"] <= 24


def test_all_are_done_at_once() -> None:
    assert together([(0.0, 1.0)], 10) == 10.0
    assert together([(0.0, 1.0), (4.0, 0.5)], 10) == pytest.approx(6.0)
    assert together([(7.0, 0.5), (0.0, 1.0)], 5) == 5.0
    assert together([(1.0, 1.0), (1.0, 1.0)], 2) == 2.0
