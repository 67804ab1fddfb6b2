"""What a phase reached is told from its batches alone: without what was under way, and without the first spans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench.rows import Row
from benchmarks.replan.experiment import SYSTEMS, Settings, limit
from benchmarks.replan.phases import SETTLING_SPANS, Batch, reached, read_batches, unsettled
from benchmarks.replan.plots import plots
from hapi.errors import InputError
from hapi.plan import Profile
from tests.profiler.example_profiles import profile_of

SPAN = 16


def batches() -> list[Batch]:
    """Ten spans a second, two more are here and four under way; from second 100 on one a second."""
    found = [Batch(number / 10, number * SPAN, (number + 2) * SPAN, number * 100, 0) for number in range(1, 1001)]
    return found + [
        Batch(100 + number, (1000 + number) * SPAN, (1002 + number) * SPAN, (1000 + number) * 100, int(number > 3))
        for number in range(1, 101)
    ]


def test_a_phase_is_measured_once_it_has_settled() -> None:
    found = reached(batches(), 100.0, 160.0, SPAN, 4)
    assert found is not None
    assert found.rate == pytest.approx(SPAN)
    assert found.changes == 1
    assert found.settling_seconds == pytest.approx(2 + 4 + SETTLING_SPANS)
    assert found.bytes == found.samples / SPAN * 100
    first = reached(batches(), 10.0, 100.0, SPAN, 4)
    assert first is not None
    assert first.rate == pytest.approx(10 * SPAN)
    assert first.changes == 0


def test_a_phase_that_never_settles_reached_nothing() -> None:
    assert reached(batches(), 100.0, 105.0, SPAN, 4) is None
    assert reached(batches(), 300.0, 400.0, SPAN, 4) is None
    assert reached([], 0.0, 1.0, SPAN, 4) is None


def test_batches_that_waited_and_come_together_tell_no_rate() -> None:
    late = [Batch(9.0 + number / 1000, (40 + number) * SPAN, (42 + number) * SPAN, 0, 0) for number in range(3)]
    assert reached(late, 0.0, 10.0, SPAN, 4) is None
    assert unsettled(late, 0.0, 10.0).samples == 42 * SPAN


def test_lines_that_are_being_written_wait(tmp_path: Path) -> None:
    progress = tmp_path / "progress.jsonl"
    assert read_batches(progress) == []
    line = json.dumps({"at": 1.5, "samples": 32, "arrived": 64, "bytes": 10, "changes": 0})
    progress.write_text(f"{line}\n{line[:20]}")
    assert read_batches(progress) == [Batch(1.5, 32, 64, 10, 0)]


def settings(**values: object) -> Settings:
    return Settings("torchvision:resnet18", 1e8, 10.0, 20.0, 64, **values)  # type: ignore[arg-type]


def test_the_limit_is_that_of_the_phases_link() -> None:
    profile: Profile = profile_of((100_000, 0.0, 0.001), (1_000, 1.0, 0.001), bits_per_s=0.9e8)
    assert settings().rate("dropped") == 1e7
    assert limit(settings(), profile, "before") == pytest.approx(0.9e8 / 8 / 100_000, rel=0.02)
    assert limit(settings(), profile, "dropped") == pytest.approx(0.9e7 / 8 / 100_000, rel=0.1)


def test_unknown_systems_are_refused() -> None:
    assert settings().systems == tuple(SYSTEMS)
    with pytest.raises(InputError, match="mix-fixed"):
        settings(systems=("plain",))


def test_the_plots_are_drawn_of_what_is_there() -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.bench.report import draw

    rows = [
        Row("replan", system).filled(
            phase=phase, samples_per_s=10.0, limit_samples_per_s=12.0, begin=100.0 + 9 * number,
            batches=[[0.1 + second, 16 * second] for second in range(9)], history=[{"at": 101.0}],
        )
        for system in SYSTEMS
        for number, phase in enumerate(("before", "dropped"))
    ]  # fmt: skip
    for plot in plots():
        for some in ([*rows, rows[0].filled(failed=True)], []):
            png, svg = draw(plot, some)
            assert png.startswith(b"\x89PNG")
            assert b"<svg" in svg


def test_what_never_settled_is_counted_whole() -> None:
    found = unsettled(batches(), 100.0, 105.0)
    assert (found.samples, found.seconds, found.changes) == (5 * SPAN, 5.0, 1)
    assert unsettled([], 0.0, 1.0).samples == 0
