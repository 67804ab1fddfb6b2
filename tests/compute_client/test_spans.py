"""Spans cover the order exactly, and cuts get their shares."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_client.spans import MAX_DEFAULT_SPAN, Dealer, Span, SpanCutter, first_of, span_size, take_first
from hapi.errors import InputError
from hapi.plan import Share

ORDERS = st.lists(st.integers(0, 30), max_size=200)
SHARES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4)


def spans(order: Iterable[int], dealer: Dealer, epoch: int) -> Iterator[Span]:
    cutter = SpanCutter(dealer, epoch)
    for index in order:
        if (span := cutter.add(index)) is not None:
            yield span
    if (span := cutter.flush()) is not None:
        yield span
    assert cutter.flush() is None


@given(ORDERS, SHARES, st.integers(1, 20))
def test_spans_are_the_order_and_repeat_no_index(order: list[int], weights: list[float], size: int) -> None:
    shares = [Share(f"cut{number}", weight) for number, weight in enumerate(weights)]
    found = list(spans(order, Dealer(shares, {share.name: size for share in shares}), 3))
    assert [index for span in found for index in span.indices] == order
    assert [span.number for span in found] == [sum(map(len, found[:place])) for place in range(len(found))]
    assert all(len(set(span.indices)) == len(span) <= size and span.epoch == 3 for span in found)


@given(SHARES, st.integers(1, 16))
def test_after_every_span_each_cut_is_within_one_span_of_its_share(weights: list[float], size: int) -> None:
    shares = [Share(f"cut{number}", weight / sum(weights)) for number, weight in enumerate(weights)]
    dealer = Dealer(shares, {share.name: size for share in shares})
    dealt = dict.fromkeys((share.name for share in shares), 0)
    for span in spans(range(size * 60), dealer, 0):
        dealt[span.cut] += len(span)
        total = sum(dealt.values())
        assert all(abs(dealt[share.name] - share.share * total) <= size * len(shares) for share in shares)


def test_dealing_is_deterministic() -> None:
    shares = [Share("a", 0.5), Share("b", 0.3), Share("input", 0.2)]
    sizes = {"a": 4, "b": 8, "input": 3}
    first, second = (list(spans(range(100), Dealer(shares, sizes), 0)) for _ in range(2))
    assert first == second
    assert {span.cut for span in first} == {"a", "b", "input"}


def test_the_first_spans_are_short_and_those_in_flight_about_what_came_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compute_client.spans.FIRST_SPAN", 1)
    lengths = [len(span) for span in spans(range(2000), Dealer([Share("a", 1.0)], {"a": 64}), 0)][:-1]
    assert lengths[:12] == [1] * 12
    assert lengths == sorted(lengths)
    assert lengths[-1] == 64
    for last in range(12, len(lengths)):
        assert sum(lengths[last - 6 : last]) <= 1.05 * sum(lengths[: last - 6])


def test_spans_are_made_lazily() -> None:
    found = list(itertools.islice(spans(itertools.cycle(range(7)), Dealer([Share("a", 1.0)], {"a": 100}), 0), 3))
    assert [span.indices for span in found] == [tuple(range(7))] * 3


def test_a_cut_without_a_share_gets_nothing() -> None:
    found = list(spans(range(20), Dealer([Share("a", 0.0), Share("b", 1.0)], {"a": 1, "b": 4}), 0))
    assert {span.cut for span in found} == {"b"}


@pytest.mark.parametrize("shares", [[], [Share("a", 0.0)], [Share("a", 2.0), Share("b", -1.0)]])
def test_impossible_shares_are_refused(shares: list[Share]) -> None:
    with pytest.raises(InputError):
        Dealer(shares, {"a": 1, "b": 1})


def test_span_sizes_respect_bytes_and_small_datasets() -> None:
    assert span_size(10**6, 1000, limit_bytes=10**9, in_flight=4) == MAX_DEFAULT_SPAN
    assert span_size(10**6, 10**6, limit_bytes=10**7, in_flight=4) == 10
    assert span_size(10**6, 10**12, limit_bytes=10**7, in_flight=4) == 1
    assert span_size(160, 1, limit_bytes=10**9, in_flight=4) == 10
    assert span_size(160, 1, limit_bytes=10**9, in_flight=4, share=0.3) == 6
    assert span_size(10, 1, limit_bytes=10**9, in_flight=4, share=0.01) == 4
    assert span_size(10**6, 1, limit_bytes=10**9, in_flight=4, share=0.5) == MAX_DEFAULT_SPAN // 2
    assert span_size(10**6, 1, limit_bytes=10**9, in_flight=4, share=0.01) == 4
    assert span_size(10**6, 1, limit_bytes=10**9, in_flight=4, per_second=80.0) == 20
    assert span_size(10**6, 1, limit_bytes=10**9, in_flight=4, share=0.5, per_second=80.0) == 10
    assert span_size(10**6, 1, limit_bytes=10**9, in_flight=4, per_second=0.1) == 8


@given(ORDERS, SHARES, st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1))
def test_spans_can_be_cut_anew(order: list[int], weights: list[float], size: int, lengths: list[int]) -> None:
    shares = [Share(f"cut{number}", weight) for number, weight in enumerate(weights)]
    waiting = deque(spans(order, Dealer(shares, {share.name: size for share in shares}), 0))
    found = list[int]()
    for length in itertools.cycle(lengths):
        if not waiting:
            break
        span = first_of(waiting, length)
        assert span.number == len(found)
        assert 1 <= len(span) <= length
        assert len(set(span.indices)) == len(span)
        take_first(waiting, len(span))
        is_last = len(found) + len(span) == len(order)
        assert len(span) == length or is_last or order[len(found) + len(span)] in span.indices
        found += span.indices
    assert found == order
