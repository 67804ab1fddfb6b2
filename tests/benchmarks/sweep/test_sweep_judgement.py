"""What is said of the policies, and the pictures of it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench.report import draw
from benchmarks.bench.rows import Row
from benchmarks.sweep.judgement import EVERY, differences, is_shown, judged, quantile, sentences
from benchmarks.sweep.plots import plots


def case(system: str, rate: float, seconds: float, best: float = 0.010, **values: Any) -> Row:
    cuts = [{"name": "b", "share": 0.7}, {"name": "input", "share": 0.3}]
    row = Row("sweep", system, model="m", bandwidth_bits_per_s=rate, seconds=seconds, limit_seconds=0.0098)
    return row.filled(best_seconds=best, best_cut="b", cuts=cuts, predicted_seconds=0.01, **values)


def cut(name: str, rate: float, seconds: float, *, is_bound: bool = False) -> Row:
    row = Row("sweep", f"cut:{name}", model="m", bandwidth_bits_per_s=rate, seconds=seconds)
    costs = {"server_seconds": 0.01, "link_seconds": 0.002, "client_seconds": 0.004}
    return row.filled(is_bound=is_bound, predicted_seconds=0.01, **costs)


ROWS = [
    case("mix", 1e8, 0.0100),
    case("single", 1e8, 0.0104),
    case("none", 1e8, 0.0300),
    *(cut(name, 1e8, seconds) for name, seconds in (("input", 0.03), ("b", 0.01), ("output", 0.02))),
    case("mix", 1e9, 0.0108),
    case("single", 1e9, 0.0100),
    case("none", 1e9, 0.0109),
    cut("input", 1e9, 0.0109),
    cut("b", 1e9, 0.010),
    cut("output", 1e9, 0.015, is_bound=True),
]


def test_shares_of_the_cases_per_policy() -> None:
    summed = {row.system: row for row in judged(ROWS) if row.model == EVERY}
    assert set(summed) == {"mix", "single", "none"}
    mix, single, none = summed["mix"], summed["single"], summed["none"]
    assert (mix.get("cases"), mix.get("within_5_of_best"), mix.get("within_10_of_best")) == (2, 0.5, 1.0)
    assert mix.get("holds") == "no: below 95 %"
    assert (single.get("within_5_of_best"), single.get("holds")) == (1.0, "yes")
    assert mix.get("within_5_of_limit") == 0.5
    assert (none.get("mean_ratio"), none.get("worst_ratio")) == (pytest.approx(2.045), pytest.approx(3.0))
    assert none.get("holds") is None


def test_shares_are_said_in_words() -> None:
    said = sentences(ROWS)
    assert said[1] == "single: 100 % of 2 cases within 5 % of the best cut measured, 50 % within 5 % of the limit."
    assert len(said) == 3
    assert sentences([]) == []


def read(*paces: float, bound: float | None = None) -> list[dict[str, Any]]:
    ended = [{"seconds_per_sample": pace, "is_bound": False} for pace in paces]
    return ended + ([] if bound is None else [{"seconds_per_sample": bound, "is_bound": True}])


def test_the_noise_of_readings_is_told_beside_the_shares() -> None:
    noisy = [
        cut("input", 1e8, 0.01).filled(readings=read(0.010, 0.011, 0.010, bound=0.002)),
        cut("b", 1e8, 0.01).filled(readings=read(0.010)),
        cut("output", 1e8, 0.01).filled(readings=read(0.010, 0.020), is_carried=True),
    ]
    assert differences(noisy) == [pytest.approx(0.0952, abs=1e-4)] * 2
    assert {row.get("noise") for row in judged([*ROWS, *noisy]) if row.model == EVERY} == {differences(noisy)[0]}
    assert sentences([*ROWS, *noisy])[-1].startswith("Two readings of one stream differ by 9.5 % (median of 2 pairs)")


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([], 0.9) is None
    assert [quantile([3.0, 1.0, 2.0], part) for part in (0.0, 0.5, 0.9)] == [1.0, 2.0, 3.0]


def test_cuts_are_in_the_document_but_not_in_the_table() -> None:
    rows = judged(ROWS)
    assert sum(not is_shown(row) for row in rows) == 6
    assert all(row.get("ratio_to_best") is None for row in rows if not is_shown(row))


def test_a_failed_network_is_no_case() -> None:
    failed = Row("sweep", "mix", model="n").filled(failed=True, note="the process ended")
    summed = [row for row in judged([*ROWS, failed]) if row.model == EVERY and row.system == "mix"]
    assert summed[0].get("cases") == 2


@pytest.mark.parametrize("rows", [judged(ROWS), []], ids=["rows", "nothing"])
def test_every_picture_is_drawn(rows: list[Row]) -> None:
    pytest.importorskip("matplotlib")
    for plot in plots():
        png, svg = draw(plot, rows)
        assert png[:4] == b"\x89PNG"
        assert b"<svg" in svg
