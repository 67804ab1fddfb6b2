"""Bars: a panel per network, a bar per row, and nothing for what a row does not have."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from benchmarks.bench.bars import bars, stacked
from benchmarks.bench.rows import Row

ROWS = [
    Row("x", "first", "alexnet", seconds=3.0).filled(a_seconds=1.0, b_seconds=2.0, change=-0.5, error=0.25),
    Row("x", "second", "alexnet", seconds=2.0).filled(a_seconds=2.0, change=0.5),
    Row("x", "first", "vgg11", seconds=1.0).filled(b_seconds=1.0, change=0.0),
    Row("x", "broken", "vgg11", failed=True),
]


def widths(figure: Figure) -> list[list[float]]:
    return [[bar.get_width() for bar in axes.patches] for axes in figure.axes]


def test_a_bar_per_row_that_has_the_value() -> None:
    figure = Figure()
    bars("change", "change", str, line=0.0, error="error")(figure, ROWS)
    assert widths(figure) == [[-0.5, 0.5], [0.0]]
    first, last = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["first", "second"]
    assert (first.get_title(), last.get_title(), last.get_xlabel()) == ("alexnet", "vgg11", "change")


@pytest.mark.parametrize("own_scales", [False, True])
def test_networks_are_drawn_to_one_scale_unless_they_are_not_held_against_each_other(own_scales: bool) -> None:
    figure = Figure()
    rows = [Row("x", "one", "alexnet", seconds=100.0), Row("x", "one", "vit_b_16", seconds=1.0)]
    bars("seconds", "time", str, own_scales=own_scales)(figure, rows)
    ends = [axes.get_xlim()[1] for axes in figure.axes]
    assert (ends[1] < 2.0) == own_scales
    assert (ends[0] == ends[1]) != own_scales


def test_parts_lie_behind_one_another_and_are_named_once() -> None:
    figure = Figure(layout="constrained")
    stacked({"a_seconds": "a", "b_seconds": "b"}, "time", str)(figure, ROWS)
    assert widths(figure) == [[1.0, 2.0, 2.0, 0.0], [0.0, 1.0]]
    assert [bar.get_x() for bar in figure.axes[0].patches] == [0.0, 1.0, 0.0, 2.0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


@pytest.mark.parametrize("draw", [bars("nothing", "", str), stacked({"a_seconds": "a"}, "", str)])
def test_without_values_nothing_is_drawn(draw) -> None:
    figure = Figure()
    draw(figure, ROWS[3:])
    assert figure.axes == []
