"""Spans come out in order, within the byte budget, and errors where they belong."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compute_client.pipeline import Pipeline
from compute_client.source import Stage
from compute_client.spans import Span, first_of
from hapi.cancel import Cancel, CancelledWork

SPANS = [Span(first, "cut", 0, (first, first + 1, first + 2)) for first in range(0, 36, 3)]


class Source:
    """Answers spans only when they are released, in any order."""

    def __init__(self, *, gated: bool = False) -> None:
        self.gates = {span.number: threading.Event() for span in SPANS}
        self.begun: set[int] = set()
        self.changed = threading.Condition()
        self.failing: set[int] = set()
        self.closed = False
        if not gated:
            for gate in self.gates.values():
                gate.set()

    def fetch(self, span: Span, cancel: Cancel) -> Stage:
        with self.changed:
            self.begun.add(span.number)
            self.changed.notify_all()
        gate = self.gates[span.number]
        with cancel.calling(gate.set):
            assert gate.wait(30)
        cancel.check()
        if span.number in self.failing:
            raise KeyError(span.number)
        values = torch.tensor(span.indices, dtype=torch.float32).view(-1, 1)
        return Stage(np.array(span.indices), np.arange(len(span)), (values,))

    def close(self) -> None:
        self.closed = True

    def wait_until_begun(self, numbers: set[int]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: numbers <= self.begun, 30)


def double(cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(2 * tensor for tensor in tensors)


def start(
    source: Source, *, in_flight: int = 3, budget: int = 10**6, span_bytes: int = 10, finish=double, together: int = 0
) -> Pipeline:
    pipeline = Pipeline(
        source, finish, lambda span: span_bytes, in_flight=in_flight, budget_bytes=budget, together=together
    )
    for span in SPANS:
        pipeline.submit(span)
    return pipeline


def test_spans_come_in_order_whatever_order_they_arrive_in() -> None:
    source = Source(gated=True)
    pipeline = start(source)
    source.wait_until_begun({0, 3, 6})
    for number in (6, 3, 0, *range(9, 36, 3)):
        source.gates[number].set()
    for span in SPANS:
        finished = pipeline.take(30)
        assert finished.span == span
        assert finished.features[0].flatten().tolist() == [2.0 * index for index in span.indices]
    assert pipeline.held_bytes == 0
    pipeline.close()
    assert source.closed


def test_no_more_is_begun_than_the_budget_holds() -> None:
    source = Source(gated=True)
    pipeline = start(source, in_flight=8, budget=25)
    source.wait_until_begun({0, 3})
    assert pipeline.held_bytes == 20
    source.gates[3].set()  # arrives early and waits: its features (12 bytes) are held, and the first span's 10
    source.gates[0].set()
    assert pipeline.take(30).span.number == 0
    source.wait_until_begun({6})
    assert source.begun <= {0, 3, 6, 9}
    pipeline.close()


def test_a_span_larger_than_the_budget_still_comes() -> None:
    pipeline = start(Source(), budget=1)
    assert [pipeline.take(30).span.number for _ in SPANS] == list(range(0, 36, 3))
    pipeline.close()


@pytest.mark.parametrize("together", [0, 64])
@pytest.mark.parametrize("where", ["fetch", "finish"])
def test_an_error_comes_at_its_place(where: str, together: int) -> None:
    source = Source()

    def finish(cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if where == "finish" and 6 in tensors[0]:
            raise KeyError(2)
        return tensors

    if where == "fetch":
        source.failing.add(6)
    pipeline = start(source, finish=finish, together=together)
    assert [pipeline.take(30).span.number for _ in range(2)] == [0, 3]
    with pytest.raises(KeyError):
        pipeline.take(30)
    pipeline.close()


class Counted(deque[Any]):
    """Tells how many came."""

    def __init__(self, arrived: threading.Semaphore) -> None:
        super().__init__()
        self._arrived = arrived

    def append(self, item: Any) -> None:
        super().append(item)
        self._arrived.release()


@pytest.mark.parametrize(("together", "most"), [(0, 3), (7, 6), (64, 36)])
def test_spans_that_wait_are_finished_at_once(together: int, most: int) -> None:
    counts: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def finish(cut: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not counts:
            begun.set()
            assert go.wait(30)
        counts.append(len(tensors[0]))
        return double(cut, tensors)

    arrived = threading.Semaphore(0)
    source = Source()
    pipeline = Pipeline(source, finish, len, in_flight=3, budget_bytes=10**6, together=together)
    pipeline._fetched = Counted(arrived)
    pipeline.submit(*SPANS)
    for _ in SPANS:
        assert arrived.acquire(timeout=30)
    assert begun.wait(30)
    go.set()
    found = [pipeline.take(30) for _ in SPANS]
    assert [finished.span for finished in found] == SPANS
    for finished in found:
        assert finished.features[0].flatten().tolist() == [2.0 * index for index in finished.span.indices]
    assert max(counts) <= most
    assert sum(counts) == 36
    assert len(counts) <= 2 + 33 // max(3, most)
    assert pipeline.held_bytes == 0
    pipeline.close()


class Pairs:
    """Deals two samples at a time, to a cut of its own."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()

    def consider(self, cancel: Cancel) -> None:
        pass

    def next(self, waiting: Sequence[Span]) -> Span | None:
        return replace(first_of(waiting, 2), cut="pairs")

    def begun(self, span: Span) -> None:
        self.under_way.add(span.number)

    def arrived(self, span: Span, way_seconds: float) -> None:
        assert span.number in self.under_way

    def ended(self, span: Span) -> None:
        self.under_way.remove(span.number)


def test_spans_are_cut_anew_when_they_are_dealt() -> None:
    source, deal = Source(), Pairs()
    source.gates = dict.fromkeys(range(0, 36, 2), source.gates[0])
    pipeline = Pipeline(source, double, len, in_flight=3, budget_bytes=10**6, deal=deal)
    pipeline.submit(*SPANS)
    found = [pipeline.take(30) for _ in range(18)]
    assert [finished.span.indices for finished in found] == [(first, first + 1) for first in range(0, 36, 2)]
    assert {finished.span.cut for finished in found} == {"pairs"}
    assert pipeline.held_bytes == 0
    assert not deal.under_way
    pipeline.close()


def test_what_may_be_begun_after_a_while_is_begun_though_nothing_happens() -> None:
    class Later(Pairs):
        looks = 0

        def next(self, waiting: Sequence[Span]) -> Span | None:
            self.looks += 1
            return super().next(waiting) if self.looks > 2 else None

    source = Source()
    pipeline = Pipeline(source, double, len, in_flight=1, budget_bytes=10**6, deal=Later())
    pipeline.submit(SPANS[0])
    assert pipeline.take(30).span.indices == (0, 1)
    pipeline.close()


def test_closing_does_not_wait_for_what_is_considered() -> None:
    class Slow(Pairs):
        def __init__(self) -> None:
            super().__init__()
            self.is_looking = threading.Event()

        def consider(self, cancel: Cancel) -> None:
            self.is_looking.set()
            with pytest.raises(CancelledWork):
                cancel.wait(60)

    deal = Slow()
    pipeline = Pipeline(Source(), double, len, in_flight=1, budget_bytes=10**6, deal=deal)
    assert deal.is_looking.wait(30)
    pipeline.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hapi-fetch")]


def test_closing_wakes_what_blocks() -> None:
    source = Source(gated=True)
    pipeline = start(source)
    source.wait_until_begun({0, 3, 6})
    pipeline.close()
    pipeline.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("hapi-fetch", "hapi-finish"))]
    assert source.begun == {0, 3, 6}
