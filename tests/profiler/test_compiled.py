"""A profile counts on compiled code where that lies on disk already, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hapi.engine import Compiler, Shelf
from hapi.engine.shelf import Compiled, key_of
from hapi.model import Graph, capture
from profiler import TierProfile, measure
from profiler.compiled import with_compiled

GAIN = 2.0


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 10)]
    return capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 16, 16), name="toy")


@pytest.fixture(scope="module")
def tier(graph: Graph) -> TierProfile:
    return measure(graph, batch_size=2, repeats=1)


def lay(shelf: Shelf, key: str, gain: float) -> None:
    shelf.path(key).write_bytes(b"library")
    shelf.keep(key, Compiled(1.0, 5, gain, 0.0))


def test_the_whole_network_is_one_program_for_both_tiers(graph: Graph, tier: TierProfile, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    lay(shelf, key_of(graph.whole, "float32", 1), GAIN)
    found = with_compiled(tier, graph, Compiler(shelf), "float32", 1)
    assert found.rows[-1].prefix_seconds == pytest.approx(tier.rows[-1].prefix_seconds / GAIN)
    assert found.rows[0].suffix_seconds == pytest.approx(tier.rows[0].suffix_seconds / GAIN)
    assert found.rows[1:-1] == tier.rows[1:-1]


def test_what_was_timed_of_a_prefix_counts_more_than_the_gain(graph: Graph, tier: TierProfile, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    lay(shelf, key_of(graph.whole, "float32", 1), GAIN)
    asked: list[str] = []

    def timed(cut: str) -> float:
        asked.append(cut)
        return 0.125

    found = with_compiled(tier, graph, Compiler(shelf), "float32", 1, timed)
    assert (found.rows[-1].prefix_seconds, asked) == (0.125, ["output"])
    assert found.rows[0].suffix_seconds == pytest.approx(tier.rows[0].suffix_seconds / GAIN)
    unknown = with_compiled(tier, graph, Compiler(shelf), "float32", 1, lambda cut: None)
    assert unknown.rows[-1].prefix_seconds == pytest.approx(tier.rows[-1].prefix_seconds / GAIN)


def test_code_for_something_else_or_no_faster_changes_nothing(graph: Graph, tier: TierProfile, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    lay(shelf, key_of(graph.whole, "float32", 2), GAIN)  # for two threads
    lay(shelf, key_of(graph.whole, "bf16", 1), GAIN)
    lay(shelf, key_of(graph.split(graph.cuts[1])[0], "float32", 1), 1.0)
    assert with_compiled(tier, graph, Compiler(shelf), "float32", 1) == tier


def test_a_folder_that_others_can_write_changes_nothing(graph: Graph, tier: TierProfile, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert with_compiled(tier, graph, Compiler(tmp_path / "open"), "float32", 1) == tier
