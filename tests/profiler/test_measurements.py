"""What is measured once is remembered, until it is old, was made on a busier machine, or is damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from profiler import measurements
from profiler.measurements import BUSIER, MAX_AGE_SECONDS, Measurements

KEY = {"model": "abc", "threads": 2}


class Bench:
    """A folder of measurements with a clock and a load of its own, that counts what is measured."""

    def __init__(self, folder: Path) -> None:
        self.now, self.load, self.made = 1e9, 0.0, 0
        self.folder = folder
        self.kept = Measurements(folder, clock=lambda: self.now, load=lambda: self.load)

    def get(self, key: dict[str, Any] = KEY, **more: Any) -> tuple[float, bool]:
        return self.kept.get(key, self._measure, to_json=float, from_json=float, **more)

    def _measure(self) -> float:
        self.made += 1
        return float(self.made)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "measurements")


def test_measured_once_for_each_key_and_across_processes(bench: Bench) -> None:
    assert bench.get() == (1.0, False)
    assert bench.get() == (1.0, True)
    assert bench.get({**KEY, "threads": 1}) == (2.0, False)
    again = Bench(bench.folder)
    assert again.get({"threads": 2, "model": "abc"}) == (1.0, True)
    assert again.made == 0


def test_asked_for_anew(bench: Bench) -> None:
    bench.get()
    assert bench.get(refresh=True) == (2.0, False)
    assert bench.get() == (2.0, True)


def test_old_ones_are_made_again(bench: Bench) -> None:
    bench.get()
    bench.now += MAX_AGE_SECONDS
    assert bench.get() == (1.0, True)
    bench.now += 1
    assert bench.get() == (2.0, False)


def test_those_of_a_busy_machine_are_made_again_when_it_is_idle_but_not_the_other_way_round(bench: Bench) -> None:
    bench.load = 2 * BUSIER
    bench.get()
    bench.load = 0.0
    assert bench.get() == (2.0, False)
    bench.load = 10.0
    assert bench.get() == (2.0, True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}', b"\xff"])
def test_damaged_files_are_made_again(bench: Bench, content: bytes) -> None:
    bench.get()
    (path,) = bench.folder.glob("*.json")
    path.write_bytes(content)
    assert bench.get() == (2.0, False)


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench = Bench(tmp_path / "file" / "below")
    assert bench.get() == (1.0, False)
    assert bench.get() == (2.0, False)


def test_the_folder_keeps_none_that_is_too_old_and_no_more_than_its_bounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(name: str, age: float) -> None:
        """As the folder's only newcomer: its time is set once all others have theirs."""
        bench.get({"name": name})
        (path,) = set(bench.folder.glob("*.json")) - set(paths.values())
        os.utime(path, (bench.now - age, bench.now - age))
        paths[name] = path

    def kept() -> set[str]:
        return {name for name, path in paths.items() if path.exists()}

    paths: dict[str, Path] = {}
    bench.now = time.time()
    keep("old", MAX_AGE_SECONDS + 1)
    (bench.folder / ".dead.part").write_bytes(b"of a process that died")
    keep("a", 3)
    assert kept() == {"a"}
    assert not list(bench.folder.glob("*.part"))
    keep("b", 2)
    monkeypatch.setattr(measurements, "MOST_KEPT", 2)
    keep("c", 1)
    assert kept() == {"b", "c"}
    monkeypatch.setattr(measurements, "MOST_BYTES_KEPT", 2 * paths["b"].stat().st_size - 1)
    keep("d", 0)
    assert kept() == {"d"}


def test_a_system_that_does_not_say_its_load_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unobtainable() -> None:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr("os.getloadavg", unobtainable)
    assert measurements.load_per_processor() == 0.0
