"""Horizontal bars, one per row: the picture of scenarios that have a number for each system, or a few that add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.bench.report import INK, OTHERS, QUIET, colour
from benchmarks.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure", Sequence[Row]], None]


def bars(
    key: str,
    label: str,
    write: Callable[[float], str],
    *,
    names: Sequence[str] = ("system",),
    line: float | None = None,
    error: str | None = None,
    own_scales: bool = False,
) -> Draw:
    """Draws `key` of each row that has it, one panel per network; `names` are the keys that name a row.

    `line` marks a value that others are held against; `error` is the key of what half of an error bar is long.
    `own_scales`: networks are not held against each other, and each panel is as wide as its longest bar.
    """

    def draw(figure: Figure, rows: Sequence[Row]) -> None:
        told = [row for row in rows if _number(row, key) is not None]
        for axes, group in _panels(figure, told, own_scales=own_scales):
            for place, row in enumerate(group):
                value = float(row.get(key))
                half = _number(row, error) if error else None
                axes.barh(place, value, 0.62, xerr=half, color=colour(row.system, 0), error_kw={"ecolor": INK})
                side = 1 if value >= 0 else -1
                axes.annotate(write(value), (value + side * (half or 0.0), place), xytext=(4 * side, 0),
                              textcoords="offset points", ha="left" if value >= 0 else "right", va="center",
                              fontsize=8, color=QUIET)  # fmt: skip
            if line is not None:
                axes.axvline(line, color=INK, linewidth=0.9)
            _finish(axes, group, names, label, write)

    return draw


def stacked(parts: Mapping[str, str], label: str, write: Callable[[float], str]) -> Draw:
    """Draws what adds up to each row's `seconds`: key -> what it is called."""

    def draw(figure: Figure, rows: Sequence[Row]) -> None:
        for axes, group in _panels(figure, [row for row in rows if row.seconds]):
            for place, row in enumerate(group):
                begin = 0.0
                for number, (key, name) in enumerate(parts.items()):
                    value = _number(row, key) or 0.0
                    told = name if not place else "_"
                    axes.barh(place, value, 0.62, left=begin, color=OTHERS[number % len(OTHERS)], label=told)
                    begin += value
                axes.annotate(write(begin), (begin, place), xytext=(4, 0), textcoords="offset points", va="center",
                              fontsize=8, color=QUIET)  # fmt: skip
            _finish(axes, group, ("system",), label, write)
        if figure.axes:
            handles, called = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, called, loc="outside lower center", ncols=4)

    return draw


def _panels(figure: Figure, rows: Sequence[Row], *, own_scales: bool = False) -> list[tuple[Any, list[Row]]]:
    """Axes for each network's rows, below one another, as high as they have rows."""
    groups = {model: [row for row in rows if row.model == model] for model in dict.fromkeys(row.model for row in rows)}
    if not groups:
        return []
    figure.set_figheight(1.6 + sum(0.34 * len(group) + 0.5 for group in groups.values()))
    heights = [len(group) for group in groups.values()]
    found = figure.subplots(len(groups), 1, squeeze=False, sharex=not own_scales, height_ratios=heights)
    return list(zip(found[:, 0], groups.values(), strict=True))


def _finish(axes: Any, group: Sequence[Row], names: Sequence[str], label: str, write: Callable[[float], str]) -> None:
    axes.set_title(group[0].model, fontsize=10)
    axes.set_yticks(range(len(group)), [", ".join(str(row.get(name)) for name in names) for row in group], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.xaxis.set_major_formatter(lambda value, _: write(value) if value else "0")
    if axes.get_subplotspec().is_last_row():
        axes.set_xlabel(label)


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
