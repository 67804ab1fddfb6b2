"""The published figures hold together, and each is compared with the rows that correspond to it."""

from __future__ import annotations

import pytest
from kept_rows import e2e, memory, sweep, tenants

from benchmarks.baselines.published import freeze_cut
from benchmarks.bench.rows import Row, row_from_json
from benchmarks.published import adaptation, quality, tenancy, times, traffic
from benchmarks.published.figures import ADAPTATION, MODELS, SERIES, SPLIT_SWEEPS, TENANT_POINTS, TIMES, TRAFFIC
from benchmarks.scenarios.published import captured
from hapi.model import Graph


def rows(documents: list[dict]) -> list[Row]:
    return [row_from_json(document) for document in documents]


@pytest.fixture(scope="module")
def alexnet() -> Graph:
    return captured("alexnet")


def test_every_network_that_was_published_is_there() -> None:
    assert {run.model for run in TIMES} == set(MODELS)
    assert {run.model for run in TRAFFIC} == set(MODELS) - {"vit_b_16"}
    assert {sweep.model for sweep in SPLIT_SWEEPS} == set(MODELS)


def test_published_figures_agree_with_what_was_claimed_of_them() -> None:
    eight = next(run for run in TRAFFIC if run.batch == 8000)
    assert eight.baseline_bytes / eight.split_bytes == pytest.approx(8.3, abs=0.05)
    tenth = next(point for point in TENANT_POINTS if point.tenants == 10)
    assert tenth.whole_seconds / tenth.split_seconds == pytest.approx(4.9, abs=0.05)
    assert max(run.samples_at_once for run in ADAPTATION if run.adapted_seconds) == 12_000


def test_rho_falls_with_bandwidth() -> None:
    series = [run.rho for run in SERIES]
    assert series == sorted(series, reverse=True)
    assert 0 < series[-1] < 0.05 < 3 < series[0]


def test_times_are_compared_at_the_same_rho() -> None:
    found = times.compare(rows(e2e()))
    absent = [row for row in found if row.get("is_missing")]
    assert [row.model for row in absent] == [model for model in MODELS if model != "alexnet"]
    assert absent[0].model == "resnet18"
    assert (
        absent[0]
        .get("says")
        .startswith("missing: hapi bench e2e --model torchvision:resnet18 --rho 0.0625 --rho 0.25 ")
    )
    found = [row for row in found if not row.get("is_missing")]
    at = {row.get("situation"): row for row in found}
    assert all(row.model == "alexnet" for row in found)
    inside = at["rho 0.26"] if "rho 0.26" in at else found[2]
    assert 2.0 <= inside.get("ours") <= 8.0
    most, _, least = found[-3:]
    assert (most.get("ours"), least.get("ours")) == (8.0, 2.0)
    assert least.get("says") == "slower than the baseline in 4 of the 31 published runs here, in 0 of our 3"
    assert found[8].get("ours") is None  # 12 Gbit/s lies outside of what was run
    assert found[8].get("says").startswith("not compared: hapi bench e2e --model torchvision:alexnet --rho 0.015625 ")


def test_of_several_runs_the_newest_counts_and_none_is_held_against_another() -> None:
    older = [row.filled(run="older") for row in rows(e2e())]
    newer = [row.filled(run="newer", seconds=2.0) for row in rows(e2e()) if row.rho == 1.0]
    curves = times.speedups([*older, *newer])["alexnet"]
    assert curves == {"older": [(0.25, 2.0), (4.0, 8.0)], "newer": [(1.0, 1.0)]}
    assert times.nearest(curves, 1.0)[0] == "newer"
    assert times.nearest(curves, 2.0)[0] == times.nearest(curves, 9.0)[0] == "older"
    alone = [row for row in newer if row.system == "mix"]
    assert times.speedups([*older, *alone])["alexnet"] == {"older": [(0.25, 2.0), (1.0, 4.0), (4.0, 8.0)]}


def test_a_value_between_two_rhos_is_of_one_run() -> None:
    apart = [row.filled(run="low" if row.rho == 0.25 else "high") for row in rows(e2e()) if row.rho != 1.0]
    found = {row.get("situation"): row for row in times.compare(apart)}
    assert found["rho 0.38"].get("ours") == 2.0
    assert found["rho 0.38"].get("run") == "low"
    assert found["rho 1.8"].get("says").startswith("not compared")


def test_ten_epochs_are_no_point_of_the_curve_of_one() -> None:
    assert times.speedups([row.filled(epochs=10) for row in rows(e2e())]) == {}


@pytest.mark.parametrize(("rho", "value"), [(0.1, 2.0), (0.25, 2.0), (0.5, 2.828), (1.0, 4.0), (9.0, 8.0)])
def test_between_two_rhos_both_axes_are_logarithmic(rho: float, value: float) -> None:
    assert times.at([(0.25, 2.0), (1.0, 4.0), (4.0, 8.0)], rho)[0] == pytest.approx(value, rel=1e-3)


def test_bytes_at_the_freeze_layer_are_those_that_were_logged(alexnet: Graph) -> None:
    found = traffic.compare([alexnet], stored_bytes=110_000)
    assert [row.get("batch") for row in found] == [2000, 8000]
    assert found[1].get("freeze_cut") == freeze_cut("torchvision:alexnet")
    assert found[1].get("freeze_bytes") == pytest.approx(found[1].get("published_split_bytes"), rel=0.005)
    assert found[1].get("says").startswith("equal")
    assert found[0].get("ours") == 2000 * 4096 * 4


def test_pictures_smaller_than_every_cut_are_shipped_as_stored(alexnet: Graph) -> None:
    assert traffic.least(alexnet, 1000.0).name == "input"


def test_measured_bytes_are_scaled_to_the_published_batch() -> None:
    first, *others = traffic.measured(rows(e2e()))
    assert [row.model for row in others if row.get("is_missing")] == [
        run.model for run in TRAFFIC if run.model != "alexnet"
    ]
    assert first.get("ours") == 2000 * 16384
    assert "rho 4" in first.get("ours_text")


def test_bytes_of_an_iteration_are_of_epochs_that_receive_something() -> None:
    later = [row.filled(epochs=10, rho=16.0) for row in rows(e2e()) if row.rho == 4.0]
    assert "rho 4" in traffic.measured([*rows(e2e()), *later])[0].get("ours_text")
    assert traffic.measured(later) == []


def test_adaptation_tells_what_died_without_it() -> None:
    rate, at_once, whole, *absent = adaptation.compare(rows(memory()))
    assert [row.model for row in absent] == [model for model in adaptation.WANTED if model != "alexnet"]
    assert rate.get("ours") == pytest.approx(1.1)
    assert at_once.get("ours") == 12.0
    assert whole.get("says") == "only adaptation survives, in both"


def test_how_much_the_batch_matters_is_told_of_those_that_survive() -> None:
    slow = {**memory()[1], "system": "fixed-4", "images_per_s": 8.0}
    (found,) = [row for row in adaptation.compare(rows([*memory(), slow])) if "server batch" in row.get("situation")]
    assert found.get("ours") == 1.25
    assert found.get("ours_text") == "1.25x (4 to 8, the fastest 8)"


def test_a_network_on_which_ours_died_is_not_compared() -> None:
    died = [{**row, "survived": "killed by the kernel"} for row in memory()]
    assert adaptation.compare(rows(died)) == []


def test_tenants_are_held_against_the_same_count_or_more() -> None:
    found = tenancy.compare(rows(tenants()))
    assert [row.get("tenants") for row in found] == [2, 4, 6, 8, 10, 12, 20]
    assert "of 4 failed" in found[0].get("ours_text")
    assert "whole: 7 failed" in found[5].get("ours_text")
    assert found[5].get("says") == "ours goes on where the published one fails"


def test_of_several_runs_of_a_policy_the_newest_is_told() -> None:
    older, newer = ([row.filled(run=run) for row in rows(tenants())] for run in ("older", "newer"))
    newer = [row.filled(failures=5) if row.system == "whole" else row for row in newer]
    found = {row.get("tenants"): row.get("ours_text") for row in tenancy.compare([*older, *newer])}
    assert found[12] == "0 of 12 failed, 1.03 of the sum alone; whole: 5 failed"


def test_tenants_of_ours_that_failed_are_told() -> None:
    broken = [{**row, "failures": 3, "failed": True} if row["system"] == "ours" else row for row in tenants()]
    unmeasured = {"scenario": "tenants", "part": "mixed", "system": "ours", "tenants": 8, "failed": True}
    found = {row.get("tenants"): row for row in tenancy.compare(rows([*broken, unmeasured]))}
    assert found[12].get("ours_text").startswith("3 of 12 failed, 1.03 of the sum alone")
    assert found[12].get("says") == "ours fails for 3"
    assert found[8].get("ours_text").startswith("3 of 12 failed")
    lost = [{**row, "failures": 4, "makespan_to_alone": None} for row in tenants()[:1]]
    assert tenancy.compare(rows(lost))[0].get("ours_text") == "4 of 4 failed"


def test_policies_are_held_against_ours_of_their_own_run() -> None:
    older = [row.filled(run="older") for row in rows(tenants())]
    (newer,) = [
        row.filled(run="newer", seconds=10.0) for row in older if row.system == "ours" and row.get("tenants") == 12
    ]
    slow = [row.filled(failures=0, seconds=30.0) if row.system == "whole" else row for row in older]
    found = tenancy.compare([*slow, newer])
    assert "whole: 1.50 times as long" in found[5].get("ours_text")
    found = tenancy.compare([row for row in [*slow, newer] if row.system == "whole" or row is newer])
    assert "whole: none failed, in another run" in found[5].get("ours_text")


def test_split_quality_counts_cases_by_the_measured_cuts() -> None:
    found = quality.compare(rows(sweep()))
    shares = {row.get("policy"): row.get("ours") for row in found if row.get("policy")}
    assert shares == {"mix": 1.0, "paper": 0.0}
    assert {row.get("ours") for row in found if "worst cut" in row.get("situation")} == {4.0}
    assert {row.model for row in found if row.get("is_missing")} == set(MODELS) - {"alexnet"}


def test_the_freeze_layer_is_held_against_the_best_cut() -> None:
    static = [{**row, "system": "static", "seconds": 1.5} for row in sweep() if row["system"] == "paper"]
    found = [row for row in quality.compare(rows([*sweep(), *static])) if "freeze" in row.get("situation")]
    assert [(row.get("published_text"), row.get("ours_text")) for row in found] == [
        ("1.07x at 12 Gbit/s", "1.5x at 100 Mbit/s")
    ]


def test_without_single_cuts_the_rows_own_ratio_counts() -> None:
    one = {"scenario": "sweep", "model": "alexnet", "bandwidth_bits_per_s": 1e9, "system": "single"}
    (found,) = quality.compare(rows([{**one, "seconds": 1.0, "ratio_to_best_single": 1.2}]))
    assert found.get("ours") == 0.0


def test_split_quality_is_what_the_sweep_itself_says() -> None:
    near = [{**row, "ratio_to_best": 1.04} if row["system"] == "paper" else row for row in sweep()]
    shares = {row.get("policy"): row.get("ours") for row in quality.compare(rows(near)) if row.get("policy")}
    assert shares == {"mix": 1.0, "paper": 1.0}
